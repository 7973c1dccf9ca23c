"""Files that are either wholly there or not there at all, on local disks and on NFS: everything durable goes through here.

problems.py    what a disk can refuse, and the tries that a passing refusal is given
writing.py     once, in place of another, or as a whole directory
leftovers.py   half-written files, whose they are, and sweeping
reading.py     regular files only, of bounded size; sha256
folders.py     what a folder allows: room, links, who may write

The functions of `os` are looked up when they are called, so that fault tests can stand in for them.
"""

from ltbench.files.folders import ask_server, exposure, free, probe, surely_missing
from ltbench.files.leftovers import discard, kernel, pid_exists, sweep, temporary_beside, writer
from ltbench.files.problems import StorageProblem, Unreadable
from ltbench.files.reading import (
    READ_LIMIT,
    read_head,
    read_known,
    read_regular,
    sha256_bytes,
    sha256_file,
)
from ltbench.files.writing import (
    make_directory,
    publish_directory,
    remove_tree,
    replace,
    sync_directory,
    write_once,
)

__all__ = [
    "READ_LIMIT",
    "StorageProblem",
    "Unreadable",
    "ask_server",
    "discard",
    "exposure",
    "free",
    "kernel",
    "make_directory",
    "pid_exists",
    "probe",
    "publish_directory",
    "read_head",
    "read_known",
    "read_regular",
    "remove_tree",
    "replace",
    "sha256_bytes",
    "sha256_file",
    "surely_missing",
    "sweep",
    "sync_directory",
    "temporary_beside",
    "write_once",
    "writer",
]
