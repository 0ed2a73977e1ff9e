"""The folders that the tests read."""

from scripts.settings import FLUX_CD, OVERLAYS

APPLICATIONS = FLUX_CD / "applications"
BASE = APPLICATIONS / "_base-app-config"
COMPONENTS = FLUX_CD / "infrastructure" / "_components"
EDGE = COMPONENTS / "ingress-controllers"
METRICS_SERVER = COMPONENTS / "metrics-server"
KEDA = COMPONENTS / "keda"
FOUNDATION = FLUX_CD / "infrastructure" / "mock-cluster-aka-namespaces"
MONITORING = COMPONENTS / "_prometheus-stack"
MONITORING_DEFINITIONS = MONITORING / "crds" / "stack"
LITE = MONITORING / "lite"
WATCHED = MONITORING / "content"
CRD_FOLDERS = [*sorted(COMPONENTS.glob("*/crds")), MONITORING_DEFINITIONS]
# What a Flux Kustomization builds, the root included: together, everything that Git puts into the cluster. KEDA is not
# among them: it comes on demand.
ROOTS = [
    FLUX_CD,
    APPLICATIONS,
    FOUNDATION,
    METRICS_SERVER,
    EDGE,
    MONITORING_DEFINITIONS,
    LITE,
    WATCHED,
    *sorted(p.parent for p in OVERLAYS.glob("*/kustomization.yaml")),
]
