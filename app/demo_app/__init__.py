"""The lab's demo application: a small Flask service that everything else of the lab measures.

One process start is: `gunicorn_conf` checks the settings and prepares the metrics' folder, `factory` builds the app in
gunicorn's master, the workers are forks of it and share one `pod.PodState`.
"""
