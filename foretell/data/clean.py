"""The cleaning steps that `[data]` asks for, in the order in which a document meets them.

Language first, because the rules of quality are made for some; personal data last, because what is dropped need not be
masked. Duplicates come after all of them: two texts may differ in what was masked alone.
"""

from __future__ import annotations

import hashlib

from foretell.config import DataConfig
from foretell.data.readers import expand
from foretell.data.steps import Step


def steps(config: DataConfig) -> list[tuple[str, Step]]:
    """(name, step) of each; the name is that of its file of dropped documents."""
    found: list[tuple[str, Step]] = []
    if config.languages:
        from foretell.data import language

        found.append(("language", language.only(config.languages)))
    if config.quality:
        from foretell.data import quality

        found.append(("quality", quality.rules()))
    if config.decontaminate:
        from foretell.data import decontaminate

        found.append(("contaminated", decontaminate.against(config.decontaminate)))
    if config.personal_data != "keep":
        from foretell.data import pii

        found.append(("personal-data", pii.scrubber(config.personal_data)))
    return found


def hiding(config: DataConfig) -> Step | None:
    """What takes personal data out of a text that is shown, where it must not be kept."""
    if config.personal_data == "keep":
        return None
    from foretell.data import pii

    return pii.scrubber("mask")


def fingerprint(config: DataConfig) -> list[str]:
    """The contents of the files that a configuration names."""
    digests = []
    for entry in expand(config.decontaminate).entries if config.decontaminate else []:
        if entry.path is not None:
            with entry.path.open("rb") as f:
                digests.append(hashlib.file_digest(f, "sha256").hexdigest())
    return digests
