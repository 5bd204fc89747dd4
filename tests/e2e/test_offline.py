"""With the network cut, everything works and nothing tries to leave."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import RealPair
from tests.support.servers import ROOT


@pytest.mark.weights
@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are a Linux thing")
def test_nothing_leaves_this_machine(real_pair: RealPair, tmp_path: Path) -> None:
    # The fixture is asked for its weights: with the network cut they must be in the cache already.
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.offline", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.strip().splitlines()[-1])
    if "skip" in report:
        pytest.skip(report["skip"])
    assert report["state"] == "indexed"
    assert report["answerable"] is True
    assert report["pages"] == [200, 200, 200]
    assert report["left"] == ""
    assert report["no_route"] == 0
