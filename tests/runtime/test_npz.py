from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.runtime.npz import read_npz
from tests.runtime.npz_files import MADE_UP, write


@pytest.mark.parametrize("kind", MADE_UP)
def test_a_file_that_is_damaged_or_made_up_is_refused_in_one_line(
    kind: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"^made_up\.npz: cannot be read: .") as caught:
        read_npz(write(tmp_path, kind))
    assert "\n" not in str(caught.value)
