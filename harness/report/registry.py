"""Builders of reports, by kind of experiment.

An experiment of another package registers its builder by an entry point in the group `hq.reports`,
under the name of the experiment. A kind without a builder gets the report of
`harness.report.generic`.
"""

from collections.abc import Callable, Sequence

from harness.report.page import Part
from harness.report.run import RunFolder
from hq.registry import Registry

Builder = Callable[[RunFolder, Sequence[RunFolder]], Part]
"""Makes the part of a page from a run, and from the other runs that were given with it."""

REPORTS: Registry[Builder] = Registry("report", "hq.reports")

# By name, because this layer is below the experiments: their modules `report` are imported when
# used, and import tables and charts, but nothing that needs torch.
for _name in (
    *("detect", "tokens", "sweep", "survival", "detectors", "conditions", "information"),
    *("distributions", "drift", "finetune", "origin", "specifications", "steps"),
):
    REPORTS.add_named(_name, f"harness.experiments.{_name}.report:report")
REPORTS.add_named("scores", "harness.demo.report:report")
