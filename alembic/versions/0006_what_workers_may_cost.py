"""What one credential's workers may cost: bytes recorded, chords that wait and until when; and whose word a task is."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

WAITING = sa.text("body_submitted_at IS NULL")


def upgrade() -> None:
    op.create_table(
        "record_usage",
        sa.Column("redis_user", sa.Text(), nullable=False),
        sa.Column("level", sa.Double(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("entries", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("refused", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("redis_user", name=op.f("pk_record_usage")),
    )
    op.add_column("tasks", sa.Column("redis_user", sa.Text(), nullable=True))
    op.drop_index("ix_chords_parts", table_name="chords", postgresql_using="gin", postgresql_where=WAITING)
    op.drop_index("ix_chords_waiting", table_name="chords", postgresql_where=WAITING)
    op.drop_constraint(op.f("pk_chords"), "chords", type_="primary")
    op.add_column("chords", sa.Column("chord_id", sa.BigInteger(), sa.Identity(), nullable=False))
    op.create_primary_key(op.f("pk_chords"), "chords", ["chord_id"])
    # One that told of a group first must not keep another, whose group it is, from telling.
    op.create_unique_constraint(
        op.f("uq_chords_group_id_redis_user"), "chords", ["group_id", "redis_user"], postgresql_nulls_not_distinct=True
    )
    # Chords that wait begin at their first part again, and are looked at once, when the server starts.
    op.add_column("chords", sa.Column("ended", sa.Integer(), server_default="0", nullable=False))
    op.add_column("chords", sa.Column("waits_for", sa.Text(), nullable=True))
    op.add_column("chords", sa.Column("size", sa.Integer(), server_default="0", nullable=False))
    op.add_column("chords", sa.Column("expired", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.execute("UPDATE chords SET size = cardinality(parts) WHERE body_submitted_at IS NULL")
    op.create_index("ix_chords_waiting", "chords", ["waits_for"], unique=False, postgresql_where=WAITING)
    op.create_index("ix_chords_created_at", "chords", ["created_at"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_chords_created_at", table_name="chords")
    op.drop_index("ix_chords_waiting", table_name="chords", postgresql_where=WAITING)
    for name in ("expired", "size", "waits_for", "ended"):
        op.drop_column("chords", name)
    op.drop_constraint(op.f("uq_chords_group_id_redis_user"), "chords", type_="unique")
    op.drop_constraint(op.f("pk_chords"), "chords", type_="primary")
    op.execute("DELETE FROM chords a USING chords b WHERE a.group_id = b.group_id AND a.chord_id > b.chord_id")
    op.drop_column("chords", "chord_id")
    op.create_primary_key(op.f("pk_chords"), "chords", ["group_id"])
    op.create_index("ix_chords_waiting", "chords", ["created_at"], unique=False, postgresql_where=WAITING)
    op.create_index(
        "ix_chords_parts", "chords", ["parts"], unique=False, postgresql_using="gin", postgresql_where=WAITING
    )
    op.drop_column("tasks", "redis_user")
    op.drop_table("record_usage")
