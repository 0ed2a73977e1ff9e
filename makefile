# The lab's commands: one line each; all logic is in scripts/ (a Python package). `make` alone prints help.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
LAB := $(VENV)/bin/python -m scripts
# Compiling the package takes longer than a check: what is compiled is kept, whatever the shell says.
unexport PYTHONDONTWRITEBYTECODE

# Variables (make <target> NAME=value)
export IMAGE_SOURCE ?= auto         ## where tools and images come from: auto, registry or source
export CLUSTER_NAME ?= gitops-lab   ## name of the cluster and of all that belongs to it
export EDGE_PORT ?= 8080            ## the applications' port on 127.0.0.1
export REGISTRY_PORT ?= 5001        ## the image registry's port on 127.0.0.1
export GIT_PORT ?= 8090             ## the Git server's port on 127.0.0.1
export EDGE ?=                      ## envoy, or none for a small machine; by default envoy, with KUBE_CONTEXT none
export MONITORING ?= auto           ## full, lite or none; auto: as the lab has it, else full, from source lite
export GIT_REMOTE ?= lab            ## name of the Git remote that setup adds to this clone
export GIT_URL ?=                   ## your own Git remote instead of the lab's server (GIT_TOKEN or GIT_SSH_KEY_FILE)
export KUBE_CONTEXT ?=              ## an existing cluster instead of kind
export IMAGE_REPOSITORY ?=          ## with KUBE_CONTEXT: where the application is pushed to (host/name)
export SUBNET ?=                    ## the lab network's subnet, where the engine's choice clashes with a VPN
export IMAGE_MIRROR ?=              ## your own registry for every image: host[:port][/prefix] (IMAGE_MIRROR_USER, IMAGE_MIRROR_PASSWORD)
export IMAGE_MIRROR_LAYOUT ?=       ## how it is laid out: prefix (a folder per upstream) or flat; found by a look if empty
export DOWNLOAD_MIRROR ?=           ## https:// address below which the release files lie by their upstream paths
export MIRROR_CA ?=                 ## file of the CA that signed the mirrors' certificates
export VERSIONS_LOCK ?=             ## a lock file of your own, for a mirror of source-built images
export ENV ?=                       ## the environment: dev, staging or production
export TREE ?=                      ## the tree that kustomize-… look at (this one's flux-cd)
export CHARTS ?=                    ## a folder of charts (<name>-<version>.tgz) that HelmReleases are rendered from
export DRY_RUN ?= 1                 ## 0: kustomize-check without the dry run on a real API server
export BASE ?=                      ## what kustomize-diff compares with (main); LIVE=1: the cluster
export OUTPUT ?=                    ## text, json, sarif or junit; of status: table or json; of kustomize-diff: text or markdown
export HPA_DURATION ?= 120         ## hpa-demo: seconds of load
export HPA_PROFILE ?= constant      ## hpa-demo: constant, ramp, step or spike
export HPA_RATE ?=                  ## hpa-demo: requests a second at the peak; by default what nearly fills the autoscaler
export HPA_CONCURRENCY ?=           ## hpa-demo: instead of a rate, as many clients
export HPA_METRIC ?= cpu           ## hpa-demo: what the autoscaler follows: cpu, or latency (p95 by KEDA, needs monitoring)
export HPA_FAIL_RATE ?= 0          ## hpa-demo: share of requests that the application fails on purpose, up to 0.5
export WAIT_SCALE_IN ?= 1           ## hpa-demo: 0 ends with the load
export RUNS ?=                      ## hpa-compare: two folders of reports/hpa; by default the last two
export DEBUG ?=                     ## 1 shows tracebacks
# Make keeps the blanks before a comment as part of a value: take them off once, here.
VARIABLES := $(shell sed -n 's/^export \([A-Z_]*\) ?=.*/\1/p' $(firstword $(MAKEFILE_LIST)))
$(foreach v,$(VARIABLES),$(eval export $(v) := $(strip $($(v)))))
# A query is PromQL's, not make's: its dollar signs, blanks and number signs stay as they were typed.
override export Q := $(value Q)

$(VENV)/.complete: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed, this is %s. To mend it: make PYTHON=python3.12" % sys.version.split()[0])'
	@echo "preparing the Python environment"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --require-hashes --requirement requirements.lock
	@touch $@

##@ The lab
setup-all: $(VENV)/.complete ## bring the whole lab up: cluster, Flux, dev, staging, production
	@$(LAB) setup-all
teardown: $(VENV)/.complete ## take it down; PURGE=volumes with Git history and images, PURGE=1 with caches too
	@$(LAB) teardown
status: $(VENV)/.complete ## what runs, what is not healthy and why; OUTPUT=json for machines
	@$(LAB) status
resume: $(VENV)/.complete ## bring the lab back after a reboot or an engine restart
	@$(LAB) resume
doctor: $(VENV)/.complete ## look for everything that would make setup fail
	@$(LAB) doctor
diagnose: $(VENV)/.complete ## collect logs, events and facts into a folder, secrets masked
	@$(LAB) diagnose
timings: $(VENV)/.complete ## time per step of the last ten setups
	@$(LAB) timings
engine-stop: $(VENV)/.complete ## stop the container engine, if setup started it
	@$(LAB) engine-stop

##@ Work with it
push: $(VENV)/.complete ## push the current commit to the lab and wait until it is live
	@$(LAB) push
deploy: $(VENV)/.complete ## build the application, move dev to it, commit, push, wait until live
	@$(LAB) deploy
reconcile: $(VENV)/.complete ## ask Flux to look at everything now
	@$(LAB) reconcile
logs: $(VENV)/.complete ## logs of an environment: ENV=dev
	@$(LAB) logs
port-forward: $(VENV)/.complete ## reach an environment on a local port: ENV=dev PORT=8000
	@$(LAB) port-forward
new-environment: $(VENV)/.complete ## add an environment, committed: NAME=qa; DELETE=1 takes it back
	@$(LAB) new-environment
test-endpoints: $(VENV)/.complete ## request all endpoints in all environments
	@$(LAB) test-endpoints

##@ Manifests
kustomize-check: $(VENV)/.complete ## structure, build, schemas and rules of every kustomization; TREE=path for another repository
	@$(LAB) kustomize-check
kustomize-structure: $(VENV)/.complete ## the tree as a picture, and what is wrong with how it hangs together
	@$(LAB) kustomize-structure
kustomize-build: $(VENV)/.complete ## every kustomization rendered as Flux applies it, into reports/kustomize-build
	@$(LAB) kustomize-build
kustomize-validate: $(VENV)/.complete ## every rendered object against its schema
	@$(LAB) kustomize-validate
kustomize-lint: $(VENV)/.complete ## what is valid and still unsafe or can't work: the rules stand in how-to-run.MD
	@$(LAB) kustomize-lint
kustomize-dry-run: $(VENV)/.complete ## the verdict of a real, empty API server on every rendered object
	@$(LAB) kustomize-dry-run
kustomize-diff: $(VENV)/.complete ## what a change does to each environment: BASE=main, or LIVE=1 for the cluster
	@$(LAB) kustomize-diff
helm: $(VENV)/.complete ## bring Helm, with which the checks render HelmReleases whose charts are at hand
	@$(LAB) helm
hooks: $(VENV)/.complete ## let each git push check the manifests first
	@$(LAB) hooks
watch: $(VENV)/.complete ## check again at each save
	@$(LAB) watch

##@ Autoscaling
hpa-demo: $(VENV)/.complete ## load an environment, watch it scale out and in, keep a report: ENV=production
	@$(LAB) hpa-demo
hpa-status: $(VENV)/.complete ## the autoscalers now, and what keeps them from scaling
	@$(LAB) hpa-status
hpa-compare: $(VENV)/.complete ## two runs side by side, in one table and one picture
	@$(LAB) hpa-compare
keda-remove: $(VENV)/.complete ## take KEDA away, which hpa-demo HPA_METRIC=latency brought
	@$(LAB) keda-remove

##@ Monitoring
query: $(VENV)/.complete ## ask Prometheus: Q='sum by (namespace) (up)'; SINCE=1h draws sparklines; OUTPUT=json
	@$(LAB) query
dashboards: $(VENV)/.complete ## draw the dashboards from live data into a page, without Grafana: SINCE=1h
	@$(LAB) dashboards
alerts: $(VENV)/.complete ## what fires, and what the receiver in the cluster was told; OUTPUT=json for machines
	@$(LAB) alerts
alert-webhook: $(VENV)/.complete ## send alerts to ALERT_WEBHOOK_URL of the environment too; empty: no longer
	@$(LAB) alert-webhook
debug-metrics: $(VENV)/.complete ## who gets the metrics of each environment: monitoring must, default must not
	@$(LAB) debug-metrics
port-forward-prometheus: $(VENV)/.complete ## Prometheus on 127.0.0.1 until Ctrl-C: PORT=9090
	@$(LAB) port-forward-prometheus
port-forward-grafana: $(VENV)/.complete ## Grafana, and how to get its password: PORT=3000
	@$(LAB) port-forward-grafana
port-forward-alertmanager: $(VENV)/.complete ## Alertmanager: PORT=9093
	@$(LAB) port-forward-alertmanager

##@ Checks
lint: $(VENV)/.complete ## ruff and mypy
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
test: $(VENV)/.complete ## unit and manifest tests: no cluster, no container engine
	@$(LAB) tools
	@$(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
test-helm: $(VENV)/.complete ## the tests of HelmReleases with Helm itself, which it brings first
	@$(LAB) helm
	@$(LAB) tools
	@$(VENV)/bin/python -m pytest tests/helm --numprocesses auto --maxprocesses 8
e2e: $(VENV)/.complete ## end-to-end tests on the running lab
	@$(VENV)/bin/python -m pytest tests/e2e -m "not long" --timeout 600 --durations 20
e2e-long: $(VENV)/.complete ## those that take minutes: kills, restarts, drains
	@$(VENV)/bin/python -m pytest tests/e2e -m long --timeout 3600 --durations 20
bench: $(VENV)/.complete ## measure setup, push and memory; JSON and a table
	@$(LAB) bench

##@ A mirror of one's own
mirror-serve: $(VENV)/.complete ## serve one from this machine; BIND=<address> lets others read it
	@$(LAB) mirror-serve
mirror-fill: $(VENV)/.complete ## fill MIRROR=host[:port][/prefix] with all that a lab takes; PLATFORMS=…, ONLY=…
	@$(LAB) mirror-fill
mirror-verify: $(VENV)/.complete ## read it whole and compare every digest
	@$(LAB) mirror-verify

##@ Housekeeping
lock: $(VENV)/.complete ## derive all lock files from versions.yaml and requirements.in; FORCE=1 takes changed digests
	@$(LAB) lock
dashboards-generate: $(VENV)/.complete ## write the dashboards' ConfigMaps from scripts/monitoring/dashboards/
	@$(LAB) dashboards-generate
definitions: $(VENV)/.complete ## write the operators' definitions from the Go modules in upstream.yaml, without descriptions
	@$(LAB) definitions
rules: $(VENV)/.complete ## write the service levels' rules from what rules/slo.yaml promises
	@$(LAB) rules
outdated: $(VENV)/.complete ## newer versions of what versions.yaml pins, seen in the mirror or upstream
	@$(LAB) outdated
clean: $(VENV)/.complete ## remove build output; CACHE=1 also the per-user cache
	@$(LAB) clean
help: ## this list
	@awk 'BEGIN { FS = ":.*## "; print "Usage: make <target> [NAME=value …]" } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z][a-z0-9-]*:.*## / { printf "  %-25s %s\n", $$1, $$2 } \
	  /^export [A-Z_]+ \?=.*## / { split($$0, p, "## "); split(p[1], w, /[ ?=]+/); v[++n] = sprintf("  %-16s %s%s", w[2], p[2], w[3] == "" ? "" : " (" w[3] ")") } \
	  END { print "\nVariables"; for (i = 1; i <= n; i++) print v[i] }' $(firstword $(MAKEFILE_LIST))

# Every documented target is a command, not a file.
.PHONY: $(shell sed -n 's/^\([a-z][a-z0-9-]*\):.*\#\# .*/\1/p' $(firstword $(MAKEFILE_LIST)))
