"""Monitoring: questions to the lab's Prometheus, its dashboards, and what scraping may reach."""
