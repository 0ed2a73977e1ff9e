"""The dashboards as code: each module names one, `build` makes Grafana's JSON of it by Grafana's own SDK."""
