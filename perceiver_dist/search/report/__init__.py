"""How a search is shown: report page, figures and the terminal."""
