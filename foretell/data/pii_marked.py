"""Rules for what carries a mark: e-mail, addresses on the net, secrets. Each is tried on texts that hold its mark."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from foretell.data.pii_numbers import Rule, Span

_LOCAL = re.compile(r"[0-9A-Za-zÀ-ɏ_](?:[0-9A-Za-zÀ-ɏ_.%+'-]*[0-9A-Za-zÀ-ɏ_+-])?\Z")
_FILES = re.compile("png|jpe?g|gif|svg|webp|ico|css|[jt]s|json|html?|py|md|txt|xml|ya?ml|pdf")


def _email(m: re.Match[str]) -> Span | None:
    local = _LOCAL.search(m.string, max(0, m.start() - 64), m.start())
    if not local or _FILES.fullmatch(m[1].lower()) or (local[0] == "git" and m.string[m.end() : m.end() + 1] == ":"):
        return None
    return local.start(), m.end()


_VERSION = re.compile(
    r"(?i)(?:\b(?:v|vers?|version|release|rel|build|firmware|update|section|sec|chapter|clause|fig|figure|table)s?"
    r"|版本|版|第|§)[\s.:=#\"'(号為为是]*\Z"
)


def _ipv4(m: re.Match[str]) -> Span | None:
    """Not a version or a section, nor an address that is everyone's: 0.*, 127.*, a mask."""
    octets = m[0].split(".")
    proper = all(str(int(o)) == o and int(o) < 256 for o in octets) and octets[0] not in {"0", "127", "255"}
    if not proper or _VERSION.search(m.string, max(0, m.start() - 24), m.start()):
        return None
    return m.span()


_GIVEN_OUT = tuple(map(ipaddress.IPv6Network, ("2000::/3", "fc00::/7", "fe80::/10")))


def _ipv6(m: re.Match[str]) -> Span | None:
    """Shortened ones only where addresses are given out: a[10::20] is no address."""
    written = m[0] if m[0].endswith("::") else m[0].rstrip(":")
    try:
        address = ipaddress.IPv6Address(written)
    except ValueError:
        return None
    known = "::" not in written or (written.find(":") == 4 and any(address in n for n in _GIVEN_OUT))
    return (m.start(), m.start() + len(written)) if known else None


def _secret(m: re.Match[str]) -> Span | None:
    """sk- begins names of style classes too: what follows must look drawn by lot."""
    drawn = all(any(test(c) for c in m[0][3:]) for test in (str.isdigit, str.isupper, str.islower))
    return m.span() if drawn or not m[0].startswith("sk-") else None


_SECRETS = {
    "AKIA": "AKIA[0-9A-Z]{16}",
    "ASIA": "ASIA[0-9A-Z]{16}",
    "gh": "gh[pousr]_[0-9A-Za-z]{36,}",
    "github_pat_": "github_pat_[0-9A-Za-z_]{22,}",
    "sk-": "sk-[0-9A-Za-z_-]{20,}",
    "sk_live_": "sk_live_[0-9A-Za-z]{16,}",
    "xox": r"xox[abeoprs](?:\.xox[bp])?-[0-9A-Za-z-]{10,}",
    "AIza": "AIza[0-9A-Za-z_-]{35}",
    "hf_": "hf_[0-9A-Za-z]{30,}",
    "eyJ": r"eyJ[0-9A-Za-z_-]{8,}\.eyJ[0-9A-Za-z_-]{4,}\.[0-9A-Za-z_-]*",
}
_PEM = (
    r"-----BEGIN ((?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?)-----"
    r"(?:[^-]*+(?:-(?!----)[^-]*+)*+-----END \1-----|(?:\s+[0-9A-Za-z+/=]{16,})*)"
)
_MARKED = (
    *(
        (m, Rule("secret", re.compile(rf"{m[0]}(?<![0-9A-Za-z_-].){p[1:]}(?![0-9A-Za-z])"), _secret))
        for m, p in _SECRETS.items()
    ),
    ("-----BEGIN ", Rule("secret", re.compile(_PEM), lambda m: m.span())),
    (
        "@",
        Rule(
            "e-mail",
            re.compile(r"@(?:[0-9A-Za-zÀ-ɏ][0-9A-Za-zÀ-ɏ-]{0,62}\.(?=[0-9A-Za-z]))++([A-Za-z]{2,24})(?![0-9A-Za-z_(])"),
            _email,
        ),
    ),
    (
        ".",
        Rule(
            "IP address",
            re.compile(
                r"[0-9](?<![0-9A-Za-z_.][0-9])(?<![A-Za-z_][/-][0-9])[0-9]{0,2}(?:\.[0-9]{1,3}){3}"
                r"(?![0-9A-Za-z_]|[.-][0-9A-Za-z_])"
            ),
            _ipv4,
        ),
    ),
    (
        ":",
        Rule(
            "IP address",
            re.compile(
                r"[0-9A-Fa-f](?<![0-9A-Za-z_:.][0-9A-Fa-f])[0-9A-Fa-f]{0,3}+:[0-9A-Fa-f]{0,4}+:[0-9A-Fa-f:]{0,31}+"
                r"(?![0-9A-Za-z_:]|\.[0-9])"
            ),
            _ipv6,
        ),
    ),
)


def marked(text: str) -> Iterator[tuple[str, Span]]:
    """Kind and span of whatever is found, in any order."""
    for mark, (kind, pattern, span, _) in _MARKED:
        if mark in text:
            for m in pattern.finditer(text):
                if found := span(m):
                    yield kind, found
