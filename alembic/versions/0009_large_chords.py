"""Chords too large for one entry of the outcomes stream are told of in pieces, which wait here for each other."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "chord_pieces",
        sa.Column("piece_id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("redis_user", sa.Text(), nullable=True),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("piece_id", name=op.f("pk_chord_pieces")),
        sa.UniqueConstraint(
            "group_id",
            "redis_user",
            "number",
            name=op.f("uq_chord_pieces_group_id_redis_user_number"),
            postgresql_nulls_not_distinct=True,
        ),
    )
    op.create_index(op.f("ix_chord_pieces_created_at"), "chord_pieces", ["created_at"])


def downgrade() -> None:
    op.drop_table("chord_pieces")
