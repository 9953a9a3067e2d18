"""Print the ACL file of a new server: all users, and a password for the rotator only.

    … | python3 deploy/aws/acl.py deploy/docker/users.acl > users.acl

Standard input is the current version of the rotator's secret, {"username": …, "password": …}. The
other users cannot log in until a rotation sets their passwords. The file contains hashes only.
"""

import hashlib
import json
import sys
from pathlib import Path
from string import Template


def render(template: str, rotator: str) -> str:
    """Return the ACL file: one line per user, without comments."""
    login = json.loads(rotator)
    lines: list[str] = []
    for line in template.splitlines():
        if line.startswith(" "):
            lines[-1] += " " + line.strip()
        elif line and not line.startswith("#"):
            lines.append(line)
    names = Template("\n".join(lines) + "\n")
    rules = dict.fromkeys(names.get_identifiers(), "resetpass")
    digest = hashlib.sha256(login["password"].encode()).hexdigest()
    return names.substitute(rules | {login["username"]: f"#{digest}"})


if __name__ == "__main__":
    sys.stdout.write(render(Path(sys.argv[1]).read_text(), sys.stdin.read()))
