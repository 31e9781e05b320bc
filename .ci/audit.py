"""The installed versions of what inspectad needs, looked up in public lists of vulnerabilities by pip-audit.

Usage: audit.py PYTHON, the interpreter of an environment that has inspectad with its extras; this one has pip-audit.
Exit code 1 when something is found that `ACCEPTED` does not name. pip-audit calls what it could not look up "no known
vulnerabilities", so each list is asked for an old version that is known to be vulnerable first: a list that does not
answer, or knows nothing of it, has audited nothing, and that is said.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

CANARY = "pyyaml==5.3"  # CVE-2020-1747 and others
SERVICES = ("pypi", "osv")
SECONDS, CANARY_SECONDS = 60, 20
ACCEPTED: dict[str, str] = {}
"""Identifiers of what is known, has no mended version, and does not matter here: each with the reason."""
ROOTS = "inspectad[train,benchmark,ray,s3]"

LIST = """
import json, re
from importlib.metadata import PackageNotFoundError, distribution
from packaging.requirements import Requirement
found, left = {}, [Requirement(ROOTS)]
seen = set()
while left:
    wanted = left.pop()
    key = (re.sub("[-_.]+", "-", wanted.name).lower(), frozenset(wanted.extras))
    if key in seen:
        continue
    seen.add(key)
    try:
        package = distribution(wanted.name)
    except PackageNotFoundError:
        continue
    found[key[0]] = package.version.split("+")[0]
    for line in package.requires or ():
        needed = Requirement(line)
        extras = [{"extra": extra} for extra in (wanted.extras or {""})]
        if needed.marker is None or any(needed.marker.evaluate(extra) for extra in extras):
            left.append(needed)
del found["inspectad"]
print(json.dumps(found))
"""


def look_up(requirements: list[str], service: str, seconds: float = SECONDS) -> dict[str, list[str] | None] | None:
    """Identifiers of what is known of each package, None for one that was not looked up; None if nothing answers."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "requirements.txt")
        file.write_text("\n".join(requirements) + "\n")
        options = ["--requirement", str(file), "--no-deps", "--disable-pip", "--format", "json", "--timeout", "10"]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pip_audit", "--vulnerability-service", service, *options],
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
            packages = json.loads(done.stdout)["dependencies"]
        except (subprocess.TimeoutExpired, ValueError, KeyError):
            return None
    return {p["name"]: None if "skip_reason" in p else [v["id"] for v in p["vulns"]] for p in packages}


def installed(python: str) -> list[str]:
    """The packages that `ROOTS` needs, and theirs, as that interpreter's environment has them."""
    listed = subprocess.run([python, "-c", f"ROOTS = {ROOTS!r}\n{LIST}"], capture_output=True, text=True, check=True)
    return [f"{name}=={version}" for name, version in sorted(json.loads(listed.stdout).items())]


def main() -> int:
    requirements = installed(sys.argv[1])
    for service in SERVICES:
        canary = look_up([CANARY], service, CANARY_SECONDS)
        if not canary or not any(canary.values()):
            continue
        found = look_up(requirements, service)
        if found is None:
            continue
        vulnerable = {name: new for name, ids in found.items() if (new := sorted({*(ids or ())} - ACCEPTED.keys()))}
        skipped = [name for name, ids in found.items() if ids is None]
        for name, ids in vulnerable.items():
            print(f"VULNERABLE: {name}: {', '.join(ids)}")
        if skipped:
            print(f"NOT AUDITED, since {service} does not list them: {', '.join(skipped)}")
        print(f"audit by {service}: {len(found) - len(skipped)} packages looked up, {len(vulnerable)} vulnerable")
        return 1 if vulnerable else 0
    print(
        f"NOT AUDITED: none of the public lists of vulnerabilities ({', '.join(SERVICES)}) can be asked from this "
        f"machine; none of the {len(requirements)} packages was looked up. Run 'make audit' where there is internet."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
