"""Write the rules of Prometheus as a resource of its operator: components/monitoring/rules.yaml.

    python deploy/k8s/build.py [--check]

``--check`` compares instead and exits with 1 if the file is out of date.
"""

import sys
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
RULES: Final = HERE.parent / "prometheus" / "rules"
OUTPUT: Final = HERE / "components" / "monitoring" / "rules.yaml"

HEAD: Final = """\
# Made by deploy/k8s/build.py from deploy/prometheus/rules/{name}.yml.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: scoreboard-{name}
  labels: {{app.kubernetes.io/name: scoreboard-{name}}}
spec:
"""


def resource(path: Path) -> str:
    """Return a file of rules as a PrometheusRule; its text is unchanged, further indented."""
    lines = path.read_text().splitlines()
    text = "\n".join(f"  {line}" if line else "" for line in lines)
    return HEAD.format(name=path.stem) + text + "\n"


def render() -> str:
    """Return all files of rules."""
    return "---\n".join(resource(path) for path in sorted(RULES.glob("*.yml")))


def main(arguments: list[str]) -> int:
    """Write or compare the file; return the exit code."""
    text = render()
    if arguments == ["--check"]:
        if OUTPUT.is_file() and OUTPUT.read_text() == text:
            return 0
        sys.stderr.write(f"{OUTPUT} is out of date: run python deploy/k8s/build.py\n")
        return 1
    OUTPUT.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
