"""Tasks: what JSONB would change of their values, as it was told."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tasks", sa.Column("exact", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("tasks", "exact")
