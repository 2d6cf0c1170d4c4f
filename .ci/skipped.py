"""Reads pytest's report: fails if a test was skipped that could have run here, or counts the outcomes.

python .ci/skipped.py REPORT                    names every skip whose reason is not that the machine lacks a part
python .ci/skipped.py --count REPORT STEPS      prints `N passed, N failed`; STEPS other steps have failed
"""

import sys
import xml.etree.ElementTree as ElementTree

# What a machine may lack: a GPU; and, in some containers, walls around a submission, which `attn doctor` shows.
LACKING = (
    "needs CUDA",
    "needs a wall that this machine lacks",
    *(
        f"no {wall} here"
        for wall in ("zygote", "namespaces", "rlimits", "uid", "landlock", "seccomp", "mounts")
    ),
    "this machine allows no namespaces",
    "the kernel's headers are not installed",
)


def main() -> int:
    counting = sys.argv[1] == "--count"
    report = sys.argv[2 if counting else 1]
    try:
        cases = list(ElementTree.parse(report).iter("testcase"))
    except (OSError, ElementTree.ParseError) as error:
        print(f"no report of the tests: {error}")
        cases = []
    skips = [(case, mark) for case in cases for mark in case.findall("skipped")]
    broken = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    if counting:
        failed = len(broken) + int(sys.argv[3])
        print(f"{len(cases) - len(skips) - len(broken)} passed, {failed} failed, {len(skips)} skipped")
        return 1 if failed else 0
    unfounded = [(case, mark) for case, mark in skips if not mark.get("message", "").startswith(LACKING)]
    for case, mark in unfounded:
        print(f"{case.get('classname')}::{case.get('name')} was skipped: {mark.get('message')}")
    return 1 if unfounded or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
