"""Sphinx: the reference of the library, out of its docstrings. `make api` builds it."""

from virtintrospect import __version__

project = "virtintrospect"
version = release = __version__
extensions = ["sphinx.ext.autodoc"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_use_type_comments = False
python_use_unqualified_type_names = True
autodoc_default_options = {"undoc-members": True, "show-inheritance": True}
html_theme = "alabaster"
html_theme_options = {"fixed_sidebar": True, "page_width": "80em"}
html_copy_source = False
html_show_sphinx = False
# References that lead nowhere are errors, but for those to Python and numpy.
nitpicky = True
suppress_warnings = ["ref.python"]  # a record's field may be called as a class is
nitpick_ignore_regex = [
    # What is behind these pages, and may change.
    (
        "py:.*",
        r"virtintrospect\.(symbols\.(btf|index|container)|insight\.columns|insight\.checks\.rule)\b.*",
    ),
    ("py:class", r"virtintrospect\.(guestview\.GuestView|translation\.Translation)"),
    ("py:.*", r"_\w+|Table|Btf|Progress|Types\.node|Context|Hit|Trigger"),
    ("py:.*", r"(np|npt|numpy|time|collections|typing|pathlib|enum|abc|contextlib|threading)\..*"),
    ("py:.*", r"(Path|Any|Self|Callable|Iterator|Iterable|Sequence|Mapping|Collection|Protocol)"),
    (
        "py:.*",
        r"(Enum|StrEnum|NamedTuple|ABC|RLock|Exception|object|str|int|bytes|float|bool|None)",
    ),
    ("py:.*", r"(dict|list|tuple|frozenset|set|type|memoryview|bytearray|namedtuple)"),
]
