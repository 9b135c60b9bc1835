"""Energy, carbon and money of a run on a cluster.

Energy is what the nodes draw (devices, and the rest of a node shared among them) times the data centre's overhead
(PUE); carbon is energy times the grid's intensity; money is device-hours times a price. Linear in time, so intervals
carry over. Not handled: embodied carbon, storage, networks' traffic, staff.
"""

from __future__ import annotations

from foretell.plan.hardware import Hardware

# Share of a node's rated draw that heavy training takes: 76% of 10.2 kW on 8 H100 (Newkirk et al., 2025).
DRAW = 0.76
# Mean of data centres the world over in 2023 (Uptime Institute); new large ones are at 1.1 to 1.2.
PUE = 1.58
# Mean of the world's electricity in 2022 (Ember, Global Electricity Review): grids range from 0.05 to 0.8.
KG_CO2_PER_KWH = 0.436


def energy_kwh(hardware: Hardware, devices: int, seconds: float, pue: float = PUE, draw: float = DRAW) -> float:
    """Kilowatt-hours at the meter for so many devices and seconds. draw: share of the node's largest power."""
    watts = devices * hardware.node_watts / hardware.devices_per_node * draw
    return watts * pue * seconds / 3.6e6


def co2_kg(kwh: float, kg_per_kwh: float = KG_CO2_PER_KWH) -> float:
    """Kilograms of carbon dioxide (equivalents, where the intensity counts them) of so much energy."""
    return kwh * kg_per_kwh


def price(hardware: Hardware, devices: int, seconds: float, price_per_hour: float | None = None) -> float:
    """US dollars of so many devices and seconds, at the table's price of a device-hour or the one given."""
    each = hardware.price_per_hour if price_per_hour is None else price_per_hour
    return devices * seconds / 3600 * each
