"""Workers: the credential that each speaks with, so that another one does not take its name."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("credential", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "credential")
