"""The categories of the data are matched with those of a detector."""

import pytest

from vovnet.detection.data.category_names import match_categories
from vovnet.errors import InputError


def test_match_categories_cuts_long_lists() -> None:
    ours = [{"id": n, "name": str(n)} for n in range(80)]
    with pytest.raises(InputError, match="and 75 more"):
        match_categories(ours, [{"id": 100, "name": "x"}])
