"""Values that are right in few fields, or in none."""

TEXTS = (
    *("", " ", "\n", "a", "a b", "A.b", "a/b", "ü", "-", "x" * 300, "x" * 1100, "it's", "latest", "v1", "\x7f", "1"),
    *("s3://", "s3:/", "s3://b", "s3:/b/c/", "s3:///b", "s3://b//c", "s3://b/../c", "s3://b/.", "s3://b/.hidden/..x"),
    *("hf:/", "hf://o/n", "hf://o\\n", "pvc://", "pvc://claim/a", "models:/", "models:/m@a", "models:/./m"),
    *("file://", "file:///", "file:///a/../b", "builtin://", "builtin://digits", "builtin://../digits"),
    *(
        "http://",
        "http://h",
        "https:///",
        "https://h/p?q=1",
        "http://u:p@h",
        "sqlite:///x.db",
        "sqlite:////",
        "ftp://h",
    ),
)
NUMBERS = (-1, 0, 0.5, 1, 2, 3, 1.5, 1e-300, 1e300, 2**31, 2**53, 2**63 - 1)
OTHERS = (True, [], {}, ["a"], {"uri": "s3://"})
VALUES = (*TEXTS, *NUMBERS, *OTHERS)
NO_REPOSITORY = ("o/n/m", "o/-n", "o/n.git", "o/a--b", "o/a..b", "o/n.", "o/é", "o/n\n", "o/" + "n" * 160)
"""Names that the hub takes for no repository."""
