"""`laser report`: runs and sweeps as one HTML page that needs no network.

`load` and `samples` read folders, and `figures` computes. `payload` collects what `report.js` draws, and
`sections` what the template shows, with the titles and captions of `metrics`. `page` writes the HTML.
"""

from dashboards.report.page import write_report

__all__ = ["write_report"]
