"""The run-config keys of a run's folders."""

from dataclasses import dataclass
from typing import ClassVar

from fedattn_app.config.schema import Section, setting


@dataclass(frozen=True)
class OutputConfig(Section):
    """The folder for the results, and the earlier run to resume."""

    title: ClassVar[str] = "Output"

    output_dir: str = setting(
        "", "folder for the results; empty: the resumed run's folder, else a new one in `runs/`"
    )
    resume_from: str = setting(
        "", "folder of an earlier run to resume from its checkpoint; empty: a new run"
    )
