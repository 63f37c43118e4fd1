"""What scenes are composed of besides robots."""
