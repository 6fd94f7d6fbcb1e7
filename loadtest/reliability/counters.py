"""What the service has counted, read off `/metrics` as any scraper would."""

from __future__ import annotations

import asyncio
import urllib.request
from collections import Counter
from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["frames_counted", "samples", "scrape"]

TIMEOUT_S = 5.0


async def scrape(urls: Iterable[str]) -> dict[str, int]:
    """`frames_counted` over several ingresses. Raises OSError."""
    total: Counter[str] = Counter()
    for text in await asyncio.gather(*(asyncio.to_thread(_get, url) for url in urls)):
        total.update(frames_counted(text))
    return dict(total)


def frames_counted(text: str) -> dict[str, int]:
    """Frames by outcome, and drops by reason as `dropped/REASON`."""
    found: dict[str, int] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "rearview_frames_total":
                found[sample.labels["outcome"]] = round(sample.value)
            elif sample.name == "rearview_frames_dropped_total":
                found[f"dropped/{sample.labels['reason']}"] = round(sample.value)
    return found


def samples(url: str) -> dict[str, float]:
    """All that has no label, by name. Raises OSError."""
    families = text_string_to_metric_families(_get(url))
    return {
        sample.name: sample.value for family in families for sample in family.samples if not sample.labels
    }


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
        text: str = response.read().decode()
        return text
