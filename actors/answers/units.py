"""Units of measurement, and how they convert. In: text after a number. Out: a `Unit`, or None."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache


@dataclass(frozen=True)
class Unit:
    """A unit: its size in the basic unit of its kind, and the kind as powers of dimensions."""

    size: Fraction
    kind: tuple[tuple[str, int], ...]
    name: str


_ROWS: list[tuple[str, int | str, dict[str, int]]] = [
    ("m meter meters metre metres", 1, {"length": 1}),
    ("km kilometer kilometers kilometre kilometres kms", 1000, {"length": 1}),
    ("dm decimeter decimeters decimetre decimetres", "1/10", {"length": 1}),
    ("cm centimeter centimeters centimetre centimetres cms", "1/100", {"length": 1}),
    ("mm millimeter millimeters millimetre millimetres", "1/1000", {"length": 1}),
    ("nm nanometer nanometers", "1/1000000000", {"length": 1}),
    ("in inch inches", "254/10000", {"length": 1}),
    ("ft foot feet", "3048/10000", {"length": 1}),
    ("yd yds yard yards", "9144/10000", {"length": 1}),
    ("mi mile miles", "1609344/1000", {"length": 1}),
    ("s sec secs second seconds", 1, {"time": 1}),
    ("ms millisecond milliseconds", "1/1000", {"time": 1}),
    ("min mins minute minutes", 60, {"time": 1}),
    ("h hr hrs hour hours", 3600, {"time": 1}),
    ("day days", 86400, {"time": 1}),
    ("week weeks", 604800, {"time": 1}),
    ("month months", 1, {"month": 1}),
    ("year years yr yrs", 12, {"month": 1}),
    ("decade decades", 120, {"month": 1}),
    ("century centuries", 1200, {"month": 1}),
    ("g gram grams", 1, {"mass": 1}),
    ("mg milligram milligrams", "1/1000", {"mass": 1}),
    ("kg kgs kilogram kilograms", 1000, {"mass": 1}),
    ("t ton tons tonne tonnes", 1000000, {"mass": 1}),
    ("lb lbs pound pounds", "45359237/100000", {"mass": 1}),
    ("oz ounce ounces", "45359237/1600000", {"mass": 1}),
    ("L l liter liters litre litres", "1/1000", {"length": 3}),
    ("mL ml milliliter milliliters millilitre millilitres", "1/1000000", {"length": 3}),
    ("gal gallon gallons", "3785411784/1000000000000", {"length": 3}),
    ("qt quart quarts", "946352946/1000000000000", {"length": 3}),
    ("pt pint pints", "473176473/1000000000000", {"length": 3}),
    ("cup cups", "2365882365/10000000000000", {"length": 3}),
    ("ha hectare hectares", 10000, {"length": 2}),
    ("acre acres", "40468564224/10000000", {"length": 2}),
    ("mph", "44704/100000", {"length": 1, "time": -1}),
    ("kph kmh kmph", "1000/3600", {"length": 1, "time": -1}),
    ("dollar dollars USD usd buck bucks", 100, {"dollar": 1}),
    ("cent cents", 1, {"dollar": 1}),
    ("dime dimes", 10, {"dime": 1}),
    ("euro euros EUR", 1, {"euro": 1}),
    ("rupee rupees", 1, {"rupee": 1}),
    ("yen", 1, {"yen": 1}),
    ("quid GBP", 1, {"pound sterling": 1}),
    ("degree degrees deg", 1, {"angle": 1}),
    ("arcminute arcminutes arcmin", "1/60", {"angle": 1}),
    ("arcsecond arcseconds arcsec", "1/3600", {"angle": 1}),
    ("degC celsius", 1, {"celsius": 1}),
    ("degF fahrenheit", 1, {"fahrenheit": 1}),
    ("radian radians rad rads", 1, {"radian": 1}),
    ("revolution revolutions rev", 360, {"angle": 1}),
    ("percent pct per-cent", "1/100", {}),
    ("permille", "1/1000", {}),
    ("N newton newtons", 1000, {"mass": 1, "length": 1, "time": -2}),
    ("J joule joules", 1000, {"mass": 1, "length": 2, "time": -2}),
    ("kJ kilojoule kilojoules", 1000000, {"mass": 1, "length": 2, "time": -2}),
    ("W watt watts", 1000, {"mass": 1, "length": 2, "time": -3}),
    ("kW kilowatt kilowatts", 1000000, {"mass": 1, "length": 2, "time": -3}),
    ("Pa pascal pascals", 1000, {"mass": 1, "length": -1, "time": -2}),
    ("Hz hertz", 1, {"time": -1}),
    ("V volt volts", 1, {"volt": 1}),
    ("A amp amps ampere amperes", 1, {"ampere": 1}),
    ("mol mole moles", 1, {"mole": 1}),
    ("K kelvin kelvins", 1, {"kelvin": 1}),
    ("unit units", 1, {"unit": 1}),
    ("bit bits", 1, {"bit": 1}),
    ("byte bytes", 8, {"bit": 1}),
]  # fmt: skip
"""Names of a unit, its size in the basic unit of its kind, and the kind."""
_UNITS = {name: (Fraction(size), kind) for names, size, kind in _ROWS for name in names.split()}
_ONE_LETTER = frozenset(name for name in _UNITS if len(name) == 1)
_POWER_WORDS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_PART = re.compile(
    r"\s*(?P<over>/|\bper\b)?\s*(?:[*.-]|\\cdot|\\times)?\s*"
    r"(?P<power>(?:square|sq|cubic|cu)\b\.?)?\s*(?P<name>[A-Za-z]+)\.?"
    r"\s*(?P<after>squared|cubed|\^\s*\{?\s*-?\d\s*\}?)?"
)


def is_unit(run: str) -> bool:
    """Whether a run of letters names a unit."""
    return run in _UNITS or (len(run) > 3 and run.lower() in _UNITS) or run.lower() in _POWER_WORDS


@lru_cache(maxsize=512)
def read_unit(text: str) -> Unit | None:
    """The unit that the whole text names: `cm^2`, `square inches`, `km/h`, `miles per hour`."""
    text = re.sub(r"[{}]", " ", re.sub(r"\\text\s*(?=\{)", "", text)).strip()
    size, kind = Fraction(1), dict[str, int]()
    position = 0
    while position < len(text):
        match = _PART.match(text, position)
        entry = _lookup(match["name"]) if match else None
        if match is None or entry is None:
            return None
        position = match.end()
        power = _POWER_WORDS.get((match["power"] or "").strip("."), 1) * _after(match["after"])
        power = -power if match["over"] else power
        size *= entry[0] ** power
        for dimension, times in entry[1].items():
            kind[dimension] = kind.get(dimension, 0) + times * power
    return Unit(size, _sorted(kind), text) if text else None


def _lookup(name: str) -> tuple[Fraction, Mapping[str, int]] | None:
    return _UNITS.get(name) or (_UNITS.get(name.lower()) if len(name) > 3 else None)


def _after(text: str | None) -> int:
    if text is None:
        return 1
    named = {"squared": 2, "cubed": 3}.get(text)
    return named or int(re.sub(r"[^\d-]", "", text))


def _sorted(kind: dict[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((dimension, power) for dimension, power in kind.items() if power))
