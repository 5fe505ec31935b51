"""Indexes for those who watch: a task's events after one of them, and the tasks that run."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_task_events_task_id_event_id", "task_events", ["task_id", "event_id"], unique=False)
    op.drop_index("ix_task_events_task_id", table_name="task_events")
    op.create_index(
        "ix_tasks_running", "tasks", ["worker_id"], unique=False, postgresql_where=sa.text("status = 'started'")
    )


def downgrade() -> None:
    op.drop_index("ix_tasks_running", table_name="tasks", postgresql_where=sa.text("status = 'started'"))
    op.create_index("ix_task_events_task_id", "task_events", ["task_id"], unique=False)
    op.drop_index("ix_task_events_task_id_event_id", table_name="task_events")
