"""Damaged files of every form: no traceback, no hang, and every record is accounted for."""

from collections import Counter
from pathlib import Path

import pytest
from mutations import FORMS, Form, cases, outcome, write_images

pytest.importorskip("pyarrow")


def test_undamaged_files_are_read(tmp_path: Path) -> None:
    write_images(tmp_path)
    for form in FORMS:
        assert outcome(form, form.whole, tmp_path / form.name) == "read"


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_damaged_files_end_in_one_line_or_in_counts(tmp_path: Path, form: Form) -> None:
    write_images(tmp_path)
    found = Counter(
        outcome(form, data, tmp_path / form.name) for form, data in cases(200, 0, (form,))
    )
    assert found.total() == 200 and min(found["read"], found["refused"]) >= 5
