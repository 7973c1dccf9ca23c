"""What this machine, or a cluster, can do, and what will go wrong there: findings with remedies. No torch is imported here."""
