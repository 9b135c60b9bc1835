"""Which strings are valid numbers of a known kind: the rules that a number of that kind obeys, and others seldom do.

Every function takes a number without separators. Sources: ISO/IEC 7812-1 (Luhn) and the issuers' published ranges;
ISO 13616 (IBAN); GB 11643 with GB/T 2260 (resident ID); GB 32100 and GB 11714 (credit code); the Social Security
Administration's rules since 2011.
"""

from __future__ import annotations

import datetime
import re

_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
_CARD = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|3(?:0[0-5]|095|[689]\d)\d{11,13}"  # Diners Club
    r"|(?:6011|64[4-9]\d|65\d\d)\d{12,15}"  # Discover
    r"|35(?:2[89]|[3-8]\d)\d{12,15}|(?:1800|2131)\d{11}"  # JCB
    r"|(?:62|81)\d{14,17}|(?:9558|6013)\d{15}"  # UnionPay, and banks of China before it
    r"|(?:50[0-9]{2}|5[6-8]\d\d|6304|6390|67\d\d)\d{9,15}"  # Maestro
    r"|220[0-4]\d{12,15}"  # Mir
)

_IBAN_LENGTHS = {
    country[:2]: int(country[2:])
    for country in re.findall(
        r"\S+",
        """
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24
    FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32
    LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24
    RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30
""",
    )
}

# The assigned ones of ITU-T's list for E.164, as a pattern; without 1, whose numbers have their own form.
CALLING_CODE = (
    "(?:7|2(?:0|7|[1-6][0-9]|9[0-9])|3(?:[0-469]|[578][0-9])|4(?:[013-9]|2[0-9])|5(?:[1-8]|[09][0-9])"
    "|6(?:[0-6]|[7-9][0-9])|8(?:[1246]|[058][0-9])|9(?:[0-58]|[679][0-9]))"
)

_PROVINCE = re.compile("1[1-5]|2[1-3]|3[1-7]|4[1-6]|5[0-4]|6[1-5]")
_PREFECTURE = re.compile("0[1-9]|[1-6][0-9]|70|90")
_HAINAN = "4600"  # its counties, from 1988 to 2002
_OTHER_SIDE = re.compile("71|8[123]")  # Taiwan, Hong Kong, Macao: their codes end in 0000
_BIRTH_YEARS = range(1900, 2030)  # fixed, so that a text meets the same fate next year
_RESIDENT_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CREDIT_SIGNS = "0123456789ABCDEFGHJKLMNPQRTUWXY"
_CREDIT_OFFICES = re.compile(r"[159][1239]|3[1-59]|6[129]|7[129]|N[1239]|[248AY][19]")
_ORGANISATION_WEIGHTS = (3, 7, 9, 10, 5, 8, 4, 2)


def luhn(digits: str) -> bool:
    """Every second digit from the right doubled, digits of the products summed: a multiple of ten."""
    odd = sum(map(int, digits[-1::-2]))
    return (odd + sum(_DOUBLED[int(d)] for d in digits[-2::-2])) % 10 == 0


def bank_card(digits: str) -> bool:
    """13 to 19 digits that begin as an issuer's cards of that length do, and pass Luhn's check."""
    return _CARD.fullmatch(digits) is not None and luhn(digits)


def iban_length(country: str) -> int:
    """Characters of an IBAN of that country (two letters, any case); 0 where there are none."""
    return _IBAN_LENGTHS.get(country.upper(), 0)


def iban(number: str) -> bool:
    """The length is the country's, and the number, rearranged, leaves 1 when divided by 97."""
    if len(number) != iban_length(number[:2]):
        return False
    return int("".join(str(int(c, 36)) for c in number[4:] + number[:4])) % 97 == 1


def _region(code: str) -> bool:
    """The province exists, and the prefecture's number is one that GB/T 2260 gives out."""
    return bool(
        _OTHER_SIDE.match(code) or (_PROVINCE.match(code) and (_PREFECTURE.match(code, 2) or code.startswith(_HAINAN)))
    )


def _date(digits: str) -> bool:
    try:
        return datetime.date(int(digits[:4]), int(digits[4:6]), int(digits[6:])).year in _BIRTH_YEARS
    except ValueError:
        return False


def resident_id(number: str) -> bool:
    """18 signs: region, date of birth, and ISO 7064 mod 11-2. Or 15 digits: region and date, without a check."""
    if len(number) == 15:
        return _region(number[:6]) and _date("19" + number[6:12])
    if not (_region(number[:6]) and _date(number[6:14])):
        return False
    rest = sum(w * int(d) for w, d in zip(_RESIDENT_WEIGHTS, number[:17], strict=True)) % 11
    return "10X98765432"[rest] == number[17].upper()


def credit_code(code: str) -> bool:
    """18 signs: registering office, region, organisation, and the check mod 31.

    One of digits only is asked for the organisation's own check digit too; with one letter it cannot be any number.
    """
    if not (_CREDIT_OFFICES.match(code) and (_region(code[2:8]) or code[2:8] == "100000")):
        return False
    total = sum(_CREDIT_SIGNS.index(c) * pow(3, n, 31) for n, c in enumerate(code[:17]))
    if _CREDIT_SIGNS[-total % 31] != code[17]:
        return False
    own = sum(w * int(c) for w, c in zip(_ORGANISATION_WEIGHTS, code[8:16], strict=True)) if code.isdigit() else None
    return own is None or str(-own % 11) == code[16]


def social_security(digits: str) -> bool:
    """Nine digits of which neither area, group nor serial is all zeros, and the area not 666 or above 899."""
    return digits[:3] not in {"000", "666"} and digits[0] != "9" and digits[3:5] != "00" and digits[5:] != "0000"
