"""The verdicts of a gate as JUnit XML, which CI systems show beside the tests."""

from pathlib import Path

from junitparser import Error, Failure, JUnitXml, TestCase, TestSuite

from harness.check.regress import Difference, Uncompared
from harness.check.verdict import OF_MEANING, GroupVerdict, Report, Verdict, describe
from hq.storage.atomic import write_whole

_GATE = "gate"


def write_junit(report: Report, path: Path) -> None:
    """Write a suite per precision, with a case per compared number and one of the verdict.

    A number out of its tolerance is a failure of the type of what it means, with the numbers and
    the reason. A number that could not be compared is an error. The case `gate` fails with the type
    "inconclusive" if the numbers cannot decide, and has an error if nothing can be compared.
    """
    xml = JUnitXml("hq check")
    for group in report.groups:
        xml.add_testsuite(_suite(report, group))
    xml.update_statistics()
    write_whole(path, xml.tostring().decode("utf-8"))


def _suite(report: Report, group: GroupVerdict) -> TestSuite:
    suite = TestSuite(group.name)
    suite.add_property("verdict", str(group.verdict))
    suite.add_property("against", str(report.against))
    suite.add_testcase(_gate(group))
    for difference in group.differences:
        suite.add_testcase(_number(group, difference))
    for missing in group.uncompared:
        suite.add_testcase(_missing(group, missing))
    return suite


def _gate(group: GroupVerdict) -> TestCase:
    """Return the case of findings that belong to no single number."""
    case = TestCase("verdict", f"{group.name}.{_GATE}")
    if group.verdict is Verdict.INCONCLUSIVE:
        case.result = [Failure(group.why, str(group.verdict))]
    elif not group.differences and group.verdict is Verdict.INCOMPARABLE:
        case.result = [Error(group.why, str(group.verdict))]
    return case


def _number(group: GroupVerdict, d: Difference) -> TestCase:
    case = TestCase(f"{d.column} of {d.row}", f"{group.name}.{d.table}")
    if d.regressed:
        failure = Failure(describe(d), str(OF_MEANING[d.tolerance.means]))
        failure.text = f"tolerance: {d.tolerance}; {d.tolerance.reason}"
        case.result = [failure]
    return case


def _missing(group: GroupVerdict, u: Uncompared) -> TestCase:
    case = TestCase(f"{u.column} of {u.row}" if u.row else u.table, f"{group.name}.{u.table}")
    case.result = [Error(f"It could not be compared: {u.why}.", str(Verdict.INCOMPARABLE))]
    return case
