"""Whose chords: a body is published with the rights of the Redis user whose workers told of it."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("chords", sa.Column("redis_user", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("chords", "redis_user")
