"""Tasks that run on workers: commands, web pages, browsers, and coding agents."""

#: Modules that define tasks; add a new one here.
TASK_MODULES: tuple[str, ...] = ("workers.command", "workers.web", "workers.agent", "workers.browser")
