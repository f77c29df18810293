"""Slurm's lists of hosts, beside what scontrol makes of them where it is installed."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from largebatch._errors import UserError
from largebatch.processes.hostlist import MOST, expand

LISTS = {
    "gpu03": "gpu03",
    "a,b": "a b",
    "n[7,9]": "n7 n9",
    "gpu[03-05,11],login1": "gpu03 gpu04 gpu05 gpu11 login1",
    "n[9-11]": "n9 n10 n11",
    "n[09-11,1]": "n09 n10 n11 n1",
    "n[098-101]": "n098 n099 n100 n101",
    "rack[1-2]node[01-02]": "rack1node01 rack1node02 rack2node01 rack2node02",
    "cn[01-02]-ib0": "cn01-ib0 cn02-ib0",
    "n[1-2].cluster.local,m": "n1.cluster.local n2.cluster.local m",
    "r[1-2]c[3,5]n[0-1]x": "r1c3n0x r1c3n1x r1c5n0x r1c5n1x r2c3n0x r2c3n1x r2c5n0x r2c5n1x",
    "a-b[1]": "a-b1",
    "n[5-5]": "n5",
}


@pytest.mark.parametrize("text", LISTS)
def test_expand(text: str) -> None:
    assert expand(text) == LISTS[text].split()


@pytest.mark.skipif(shutil.which("scontrol") is None, reason="no scontrol here")
@pytest.mark.parametrize("text", LISTS)
def test_scontrol_says_the_same(text: str) -> None:
    done = subprocess.run(
        ["scontrol", "show", "hostnames", text], capture_output=True, text=True, check=True
    )
    assert expand(text) == done.stdout.split()


def test_a_wide_cluster() -> None:
    assert len(expand("r[00-99]n[000-999]")) == 100_000
    assert expand("r[00-99]n[000-999]")[-1] == "r99n999"


@pytest.mark.parametrize(
    "text",
    ["", ",", "a,", ",a", "a,,b", "n[1", "n1]", "n[]", "n[1-]", "n[-2]", "n[3-1]", "n[a-b]", "a b",
     "n[[1]]", "n[1,]", "bgp[000x133]", f"n[0-{MOST}]", "n[0-99999]m[0-99999]"],
)  # fmt: skip
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="MASTER_ADDR"):
        expand(text)
