"""Artifacts: whether the server has seen them, who left them, until when; told of before their task may be."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("artifacts", sa.Column("status", sa.Text(), server_default="arriving", nullable=False))
    op.add_column("artifacts", sa.Column("worker_id", sa.Text(), nullable=True))
    op.add_column("artifacts", sa.Column("attempt", sa.Integer(), server_default="1", nullable=False))
    op.add_column("artifacts", sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
    op.create_check_constraint(op.f("ck_artifacts_status"), "artifacts", "status IN ('arriving', 'kept', 'missing')")
    op.drop_constraint(op.f("fk_artifacts_task_id"), "artifacts", type_="foreignkey")
    op.drop_index(op.f("ix_artifacts_task_id"), table_name="artifacts")
    op.create_unique_constraint(op.f("uq_artifacts_task_id_name"), "artifacts", ["task_id", "name"])
    op.create_index(op.f("ix_artifacts_created_at"), "artifacts", ["created_at"], unique=False)
    op.create_index(op.f("ix_artifacts_expires_at"), "artifacts", ["expires_at"], unique=False)
    op.create_index(
        "ix_artifacts_arriving",
        "artifacts",
        ["created_at"],
        unique=False,
        postgresql_where=sa.text("status = 'arriving'"),
    )


def downgrade() -> None:
    op.drop_index("ix_artifacts_arriving", table_name="artifacts", postgresql_where=sa.text("status = 'arriving'"))
    op.drop_index(op.f("ix_artifacts_expires_at"), table_name="artifacts")
    op.drop_index(op.f("ix_artifacts_created_at"), table_name="artifacts")
    op.drop_constraint(op.f("uq_artifacts_task_id_name"), "artifacts", type_="unique")
    op.create_index(op.f("ix_artifacts_task_id"), "artifacts", ["task_id"], unique=False)
    op.execute("DELETE FROM artifacts a WHERE NOT EXISTS (SELECT FROM tasks t WHERE t.task_id = a.task_id)")
    op.create_foreign_key(
        op.f("fk_artifacts_task_id"), "artifacts", "tasks", ["task_id"], ["task_id"], ondelete="CASCADE"
    )
    op.drop_constraint(op.f("ck_artifacts_status"), "artifacts", type_="check")
    op.drop_column("artifacts", "expires_at")
    op.drop_column("artifacts", "attempt")
    op.drop_column("artifacts", "worker_id")
    op.drop_column("artifacts", "status")
