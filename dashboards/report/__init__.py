"""`laser report`: runs and sweeps as one HTML page that needs no network.

`load` reads folders, `figures` computes, `payload` collects what `report.js` draws, and `page` writes the HTML.
"""

from dashboards.report.page import write_report

__all__ = ["write_report"]
