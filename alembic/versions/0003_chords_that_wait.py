"""An index of the chords whose body is not submitted: the recorder asks with every batch whether there is one."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_chords_waiting",
        "chords",
        ["created_at"],
        unique=False,
        postgresql_where=sa.text("body_submitted_at IS NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_chords_waiting", table_name="chords", postgresql_where=sa.text("body_submitted_at IS NULL"))
