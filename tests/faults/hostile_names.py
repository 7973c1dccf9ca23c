"""Names that try to leave their folder, name a device, start a flag, or break a line; and the places that take a name.

    python -m tests.faults.hostile_names ROOT

asks every place for every name with all of ltbench's folders below ROOT, and prints one JSON line per refusal or answer; the test
runs it under strace and looks at what was opened.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

NAMES = [
    *(
        "../outside/canary",
        "../../outside/canary",
        "..",
        ".",
        "./canary",
        "a/../../outside/canary",
        "a/b",
        "/",
        "//",
    ),
    *(
        "/etc/passwd",
        "/OUTSIDE/canary",
        "/dev/zero",
        "/dev/stdin",
        "/proc/self/environ",
        "~/canary",
        "~root/.ssh/id_rsa",
        "~",
    ),
    *(
        "..\\outside\\canary",
        "C:\\canary",
        "\\\\host\\share",
        "file:///etc/passwd",
        "http://127.0.0.1:1/x",
        "s3://b/k",
    ),
    *(
        "a\0b",
        "\0",
        "a\nb",
        "a\r\nb",
        "a\tb",
        "\x1b[31mred",
        "\x07",
        "a\x7fb",
        "\u202ecod.exe",
        "\u200b",
        "\ufeffa",
    ),
    *(
        "-rf",
        "--help",
        "-",
        "--store=/tmp/x",
        "$(touch canary)",
        "`touch canary`",
        "${HOME}",
        "$HOME",
        "%s%n",
        "{0.__class__}",
    ),
    *(
        "a;b",
        "a|b",
        "a&b",
        "a>b",
        "a*b",
        "a?b",
        "[a]",
        "'",
        '"',
        "a b",
        " a",
        "a ",
        "",
        "a.",
        ".hidden",
        "..a",
    ),
    *(
        "CON",
        "NUL",
        "aux.yaml",
        "é",
        "ﬁ",
        "😀",
        "А",
        "I\u0307",
        "K" * 300,
        "a" * 300,
        "a" * 5000,
        "<script>alert(1)</script>",
    ),
    *(
        "\\input{/etc/passwd}",
        "{{7*7}}",
        "=cmd|' /C calc'!A0",
        "../" * 50 + "etc/passwd",
        "canary.json/../../x",
        "%2e%2e%2fcanary",
    ),
    *("__init__", "__class__", "contract", "os", "import", "None", "true", "1e9", "0x10", "~/.ssh/../canary"),
]

SPEC = """
name: {name}
dataset: {{name: digits, imbalance: 0.1, resolution: 16}}
pipeline: sit
network: SiT-N/4
train: {{batch: 12, local_batch: 6, milestones: [2]}}
evaluate: [{{protocol: small-data, sampler: euler, steps: 1, guidance: 1, samples: 20, block: 20}}]
grid: {{method: [sit], seed: 0}}
"""


def places(root: Path) -> dict[str, Callable[[str], object]]:
    """What takes a name: each raises an error of ours, or stays below `root`."""
    from ltbench import spec
    from ltbench.plugins import get
    from ltbench.store import Store
    from ltbench.store.claims import check_stage

    store = Store.open(root / "store", root / "scratch")
    cell, run = "0" * 64, "0" * 12

    def of_spec(key: str, old: str) -> Callable[[str], object]:
        def load(name: str) -> object:
            path = root / "hostile.yaml"
            path.write_text(SPEC.format(name="plain").replace(old, f"{key}: {json.dumps(name)}", 1))
            return spec.load(path)

        return load

    return {
        "benchmark": of_spec("name", "name: plain"),
        "data set": of_spec("name", "name: digits"),
        "pipeline": of_spec("pipeline", "pipeline: sit"),
        "network": of_spec("network", "network: SiT-N/4"),
        "protocol": of_spec("protocol", "protocol: small-data"),
        "method": of_spec("method", "method: [sit]"),
        "plugin": lambda name: get("methods", name),
        "cell": lambda name: store.resolve(name),
        "cell folder": lambda name: store.cell(name),
        "run": lambda name: store.run(cell, name),
        "evaluation": lambda name: store.get_evaluation(name),
        "stored spec": lambda name: store.put_spec(name, "name: a"),
        "stage": lambda name: check_stage(name),
        "fact": lambda name: store.run(cell, run).facts.file(name),
    }


def main(root: Path) -> None:
    from ltbench.cli.output import safe

    for place, ask in places(root).items():
        for name in NAMES:
            began = time.process_time()
            try:
                ask(name.replace("OUTSIDE", str(root.parent / "outside").strip("/")))
                said = None
            except Exception as error:
                said = [type(error).__name__, safe(str(error))]
            line = {"place": place, "name": name, "said": said, "seconds": time.process_time() - began}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    main(Path(sys.argv[1]))
