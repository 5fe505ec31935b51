"""The check of each task's result against the one it must have."""

import os
from typing import Any

from demo.screen import Screen
from demo.work import Evidence, Work, evidence


def examine(work: dict[str, Work], reports: dict[str, dict[str, Any]], screen: Screen) -> None:
    """Show one result of each kind, and check all of them; `reports` are get_task's, by task id."""
    failed = [f"{work[task_id].title}: {it.get('error_message')}" for task_id, it in reports.items() if _failed(it)]
    found = [(work[task_id], evidence(work[task_id].kind, it)) for task_id, it in reports.items() if not _failed(it)]
    for item, returned in {item.kind: (item, returned) for item, returned in found}.values():
        screen.show(f"{item.kind}: {item.title} -> {returned.said}")
    screen.check(f"all {len(work)} tasks succeeded", not failed, failed)
    if found:
        _check_evidence(found, screen)


def _failed(report: dict[str, Any]) -> bool:
    return report["status"] != "succeeded"


def _check_evidence(found: list[tuple[Work, Evidence]], screen: Screen) -> None:
    unlike = [item.title for item, returned in found if returned.digest != item.digest]
    screen.check(
        "each returned a digest of the nonce file (web pages: of the page with the nonce in it)", not unlike, unlike
    )
    pids = frozenset().union(*(returned.pids for _, returned in found))
    nobodys = [item.title for item, returned in found if not returned.pids or os.getpid() in returned.pids]
    screen.check(f"each ran in one of {len(pids)} processes, never in this one ({os.getpid()})", not nobodys, nobodys)
    unwell = [f"{item.title}: {returned.said}" for item, returned in found if not returned.well]
    screen.check("the linter found nothing, the tests passed, the pages were there", not unwell, unwell)
