"""Text that steers what shows it: terminals, logs, Markdown and YAML."""

import unicodedata

AWKWARD = {
    "markup": "[red]x[/red] [link=http://e.example]y[/link] [/] :smile:",
    "colours": "a\x1b[31mb\x1b[2J\x1b[1;1Hc",
    "a title and a link": "a\x1b]0;title\x07b\x1b]8;;http://e.example\x1b\\c",
    "C1": "a\x9b31mb\x90c",
    "carriage returns": "failed\rcomplete\x08\x7f\x0b\x0c",
    "direction": "a\u202ecba\u2066b\u200fc",
    "invisible": "a\u200bb\ufeff\U000e0041c",
    "more lines": "a\ngate passed: FID\u2028b\x85c\r\nd",
    "half a character": "a\ud800b",
    "html": "<script>alert(1)</script><img src=x onerror=y> &lt;",
    "Markdown": "**a** _b_ `c` [d](http://e.example) ![f](http://e.example) | g | # h @i ~~j~~ $k$ \\",
    "front matter": "x\n---\nlicense: mit\n# y",
    "yaml": "a: {b: [c, 'd', !!python/object/apply:os.system [e]]} # f",
}


def steers(text: str) -> list[str]:
    """The characters of a text that are not seen, other than line breaks."""
    return [c for c in text if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and c != "\n"]
