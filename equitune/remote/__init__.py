"""From the laptop to a cluster: jobs are submitted, followed and cancelled."""
