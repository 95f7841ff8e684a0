"""`laser report`: runs and sweeps as one HTML page that needs no network.

`load` and `samples` read folders, and `figures` computes. `payload` collects the numbers that `report.js`
draws, and `sections` those that the template shows; `orchestrator.measures` names them. `page` writes the
HTML.
"""

from dashboards.report.page import write_report

__all__ = ["write_report"]
