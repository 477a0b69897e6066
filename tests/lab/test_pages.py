"""Self-contained pages: text stays text, data stay data, and nothing is asked of the network.

Leaves out how the pages look.
"""

import html.parser
import json
import re

import pytest

from telescope.lab.pages import escaped, page, text_of

TRICKS = ["</script><script>alert(1)</script>", "<!--<script>", 'a "quote" & γ\u2028']


class Parts(html.parser.HTMLParser):
    """The data and scripts of a document."""

    def __init__(self, text):
        super().__init__()
        self.data, self.scripts, self._id, self.title = {}, [], None, ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self._id = (tag, dict(attributes).get("id"))

    def handle_data(self, text):
        if self._id and self._id[0] == "script":
            name = self._id[1]
            if name is None:
                self.scripts.append(text)
            else:
                self.data[name] = json.loads(text)
        elif self._id and self._id[0] == "title":
            self.title += text

    def handle_endtag(self, tag):
        self._id = None


def test_data_and_titles_of_users_stay_what_they_are():
    for trick in TRICKS:
        parts = Parts(page(trick, f"<main>{escaped(trick)}</main>", data={"run": {"name": trick, "x": [1.5, None]}}))
        assert parts.data == {"run": {"name": trick, "x": [1.5, None]}}
        assert parts.title == trick
        assert parts.scripts == []


def test_numbers_that_json_lacks_are_an_error():
    with pytest.raises(ValueError, match="JSON"):
        page("t", "", data={"x": float("nan")})


def test_a_page_asks_nothing_of_the_network():
    text = page("t", "<main></main>", styles=["page.css"])
    assert "default-src 'none'" in text
    assert not re.search(r"(?:src|href)=\"(?!data:)|url\(|@import|https?:", text)


def test_the_shared_look_has_every_colour_in_both_schemes():
    light, dark = text_of("page.css").split("prefers-color-scheme: dark")
    colours = re.findall(r"(--[\w-]+): #", light)
    assert len(colours) > 15
    assert colours == re.findall(r"(--[\w-]+): #", dark)
