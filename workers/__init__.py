"""What runs on workers: commands, web pages, browsers, and coding agents."""

#: Modules with tasks; a new one is a line here.
TASK_MODULES: tuple[str, ...] = ("workers.command", "workers.web", "workers.agent", "workers.browser")
