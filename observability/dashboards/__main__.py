"""`python -m observability.dashboards`: writes every dashboard's JSON."""

from observability.dashboards import FOLDER, files

FOLDER.mkdir(parents=True, exist_ok=True)
for file, text in files().items():
    file.write_text(text)
