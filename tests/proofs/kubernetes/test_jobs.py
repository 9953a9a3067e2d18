"""Jobs run once, and CronJobs make them."""

from datetime import UTC, datetime, timedelta

from tests.proofs.kubernetes.api_server import MERGE
from tests.proofs.kubernetes.installation import NAMESPACE, Installation, path
from tests.support.eventually import eventually

COMPLETE = "--for=condition=Complete"


def test_a_cron_job_makes_a_job_that_completes(installed: Installation) -> None:
    """Each CronJob runs at its time; one that is suspended is a template for an operator."""
    api = installed.cluster.api
    for cron in installed.live("cronjobs"):
        name = cron["metadata"]["name"]
        if cron["spec"].get("suspend"):
            job = f"by-hand-{name}"
            installed.cluster.kubectl(
                *("create", "job", job, f"--from=cronjob/{name}", "-n", NAMESPACE)
            )
        else:
            schedule = cron["spec"]["schedule"]
            installed.patch("cronjobs", name, {"spec": {"schedule": "* * * * *"}})
            # The controller finds that the run of this minute was missed and starts it.
            earlier = datetime.now(UTC) - timedelta(minutes=2)
            status = {"lastScheduleTime": earlier.strftime("%Y-%m-%dT%H:%M:%SZ")}
            api.patch(f"{path('cronjobs', name)}/status", {"status": status}, MERGE)

            def made(name: str = name) -> str:
                owned = [
                    found["metadata"]["name"]
                    for found in installed.live("jobs")
                    for owner in found["metadata"].get("ownerReferences", [])
                    if owner["name"] == name
                ]
                return owned[0] if owned else ""

            job = eventually(made)
            installed.patch("cronjobs", name, {"spec": {"schedule": schedule}})
            assert cron["spec"]["concurrencyPolicy"] == "Forbid", name
        installed.cluster.kubectl("wait", COMPLETE, f"job/{job}", "-n", NAMESPACE, "--timeout=30s")
        installed.cluster.kubectl("delete", "job", job, "-n", NAMESPACE)
