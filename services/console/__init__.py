"""The console: four server-rendered pages over the running system (docs/console.md)."""
