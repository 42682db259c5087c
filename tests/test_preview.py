"""The contact sheet shows every edit, with truth a person can check."""

import re

from click.testing import CliRunner

from calm_train.cli import train
from calm_train.pretext.edits import EDITS


def test_the_page_holds_pairs_edits_and_texts(tmp_path, example_folder):
    arguments = ["preview", "--photos", example_folder, "-o", tmp_path, "--count", "2"]
    result = CliRunner().invoke(train, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "preview.html").read_text()
    assert page.count("data:image/jpeg") == 2 * 2 + 2 * len(EDITS)
    assert not re.search(r"(src|href)=\"http", page)
    assert all(name in page for name in EDITS)
    ratings = [float(r) for r in re.findall(r"rating ([\d.]+)", page)]
    assert ratings[0] >= ratings[1] - 0.05
    assert ratings[2] >= ratings[3] - 0.05
