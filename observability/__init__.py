"""What operators see: Prometheus's scrapes and rules, Grafana's dashboards and what makes them."""
