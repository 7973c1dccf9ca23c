"""Planted secrets, and methods that spill whatever they find."""

from __future__ import annotations

import subprocess
from pathlib import Path

# By variable: nothing but its name says that the value is a secret.
VARIABLES = {
    "HF_TOKEN": "canary01-value",
    "WANDB_API_KEY": "canary02abcdef",
    "AWS_SECRET_ACCESS_KEY": "canary03/+slash",
    "MY_PASSWORD": "canary04 with spaces",
    "DB_PASSWD": 'canary05"quote\\back',
    "SLURM_JWT": "canary06.not.a.jwt",
    "CLIENT_SECRET": "canary07ümlaut",
    "GPG_PASSPHRASE": "canary08-phrase",
    "SESSION_COOKIE": "canary09%41percent",
    "SOME_ACCESS_KEY": "canary10key",
    "API_CREDENTIALS": "user canary11",
    "PROXY_AUTH": "canary12auth",
    "DEPLOY_PRIVATE_KEY": "-----BEGIN RSA PRIVATE KEY-----\ncanary13aaaaaaaaaaaaaaaa\ncanary14bbbbbbbbbbbbbbbb\n"
    "-----END RSA PRIVATE KEY-----",
    "PIP_INDEX_URL": "https://me:canary15pip@packages.example/simple",
    "HTTPS_PROXY": "http://me:canary16proxy@proxy.example:3128",
    "DATABASE_URL": "postgres://me:canary17db@db.example/x",
}
# By shape: in no variable, only in what a method says.
SHAPES = [
    "ghp_canary18" + "x" * 30,
    "hf_canary19" + "x" * 30,
    "sk-canary20" + "x" * 30,
    "glpat-canary21xxxxxxxxxxxx",
    "https://canary22user:word@host.example/a",
    "https://host.example/a?token=canary23xx",
    "Authorization: Bearer canary24xx",
    "--api-key canary25xx",
    "eyJcanary26xx.eyJxxxxxxxxxx.xxxxxxxxxx",
    "{'OTHER_TOKEN': 'canary27xx'}",
]
FILES = ("canary28file", "canary29netrc")
REMOTE = "https://me:canary30remote@git.example/a.git"
COMMENT = "canary31comment"
EVERY = [f"canary{number:02d}" for number in range(1, 32)]

METHOD = '''
import os, subprocess, sys

from ltbench.methods import Method, mean_square

SHAPES = {shapes!r}


def everything():
    """All that a careless method could print, as one text."""
    lines = [*SHAPES, *map(" = ".join, os.environ.items()), repr(dict(os.environ)), " ".join(sys.argv)]
    for path in (os.environ["HF_TOKEN_PATH"], os.path.expanduser("~/.netrc")):
        lines.append(open(path).read())
    return "\\n".join(lines)


{module}


class Spill(Method):
    """Says too much."""

    def loss(self, net, draw):
        print(everything(), flush=True)
        subprocess.run(["git", "remote", "-v"], stdout=2)
        {loss}
        (out,) = self.run(net, draw, draw.y_in)
        return {{"denoise": mean_square(out.pred, draw.target)}}
'''
METHODS = {
    "prints": ("", "pass"),
    "raises": ("", "raise RuntimeError(everything().replace('\\n', ' '))"),
    "dies": ("", "os.write(2, everything().encode()); os._exit(7)"),
    "fails_on_import": ("raise ValueError(everything())", "pass"),
}
SPEC = f"""
# {COMMENT}
name: spill
dataset: {{name: digits, imbalance: 0.1, resolution: 16}}
pipeline: sit
network: SiT-N/4
train: {{batch: 12, local_batch: 6, milestones: [2], lr: 1e-3, ema: 0.9}}
evaluate: [{{protocol: small-data, sampler: euler, steps: 1, guidance: 1, samples: 20, block: 20}}]
grid: {{method: [{", ".join(METHODS)}], seed: 0}}
"""


def plant(folder: Path, home: Path) -> dict[str, str]:
    """Write plugins, token files and a repository with a telling remote; the environment that goes with them."""
    methods = folder / "methods"
    methods.mkdir(parents=True)
    for name, (module, loss) in METHODS.items():
        (methods / f"{name}.py").write_text(METHOD.format(shapes=SHAPES, module=module, loss=loss))
    (folder / "token").write_text(FILES[0] + "\n")
    (home / ".netrc").write_text(f"machine api.example\n  login me\n  password {FILES[1]}\n")
    repository = folder / "repository"
    for words in (
        ["init", "-q", str(repository)],
        ["-C", str(repository), "remote", "add", "origin", REMOTE],
    ):
        subprocess.run(["git", *words], check=True)
    return {
        **VARIABLES,
        "HF_TOKEN_PATH": str(folder / "token"),
        "GIT_DIR": str(repository / ".git"),
        "LTBENCH_PLUGINS": str(folder),
        "LTBENCH_ASK": "0",
    }
