//! What a graph gives, and how that becomes a score.
//!
//! Owns the output kinds, their metadata keys and their limits. Never computes a score: `runtime::output` does, by the formulas
//! that the module documentation of [`super`] gives.

use std::collections::HashSet;
use std::fmt;

use serde::Serialize;

use super::metadata::Metadata;
use super::{
    CLASSES_MAX, ContractError, InputKind, KEY_ALARM_ABOVE, KEY_ALARM_BELOW, KEY_CLASSES, KEY_HEALTHY, KEY_HORIZON,
    KEY_NORMAL_CLASS, KEY_OUTPUT, KEY_SCALE, KEY_THRESHOLD, KEY_UNIT, check_label, json, shorten,
};

/// The alarm threshold of a probability model that names none: the machine is more likely ill than not.
const PROBABILITY_THRESHOLD: f32 = 0.5;

/// What the graph gives. More kinds may join: match with a default.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OutputKind {
    /// `score: f32[batch]`, 1.0 being the alarm threshold.
    Score,
    /// `reconstruction: f32[batch, samples, channels]`, the window as the model would have it.
    Reconstruction(Residual),
    /// `forecast: f32[batch, horizon, channels]`, the last rows of a window whose other rows the model is given.
    Forecast(Forecast),
    /// `probability: f32[batch, classes]`.
    Probability(Classes),
    /// `value: f32[batch]`, such as the remaining useful life.
    Regression(Regression),
}

/// How large a difference between window and model is large.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Residual {
    /// Standard deviation of each channel's residual on a healthy machine, in the channel's unit; positive.
    pub scale: Vec<f32>,
    /// Root mean square of the scaled residuals at which the alarm is raised; positive.
    pub threshold: f32,
}

/// What a forecast is, and how far from it is far.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Forecast {
    /// Rows at the window's end that are predicted from those before.
    pub horizon: usize,
    /// Scale and threshold of the differences.
    #[serde(flatten)]
    pub residual: Residual,
}

/// The classes of a probability model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Classes {
    /// Their names, in the order of the graph's columns.
    pub names: Vec<String>,
    /// Which of them is a healthy machine.
    pub normal: usize,
    /// Probability of all other classes at which the alarm is raised; positive, at most 1.
    pub threshold: f32,
}

/// What a regressed value means.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Regression {
    /// The value's unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The value of a healthy machine.
    pub healthy: f32,
    /// The value at which the alarm is raised.
    pub alarm: AlarmValue,
}

/// On which side of a value the alarm is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AlarmValue {
    /// Less is worse: remaining useful life, efficiency.
    Below(f32),
    /// More is worse: wear, temperature.
    Above(f32),
}

impl AlarmValue {
    /// The value at which the alarm is raised.
    pub fn value(self) -> f32 {
        match self {
            AlarmValue::Below(value) | AlarmValue::Above(value) => value,
        }
    }
}

impl OutputKind {
    /// Reads the kind and its keys.
    pub(super) fn read(
        metadata: &Metadata<'_>,
        input: &InputKind,
        samples: usize,
        channels: usize,
    ) -> Result<OutputKind, ContractError> {
        let kind = match metadata.text(KEY_OUTPUT) {
            None | Some("score") => OutputKind::Score,
            Some("reconstruction") => OutputKind::Reconstruction(Residual::read(metadata, channels)?),
            Some("forecast") => OutputKind::Forecast(Forecast {
                horizon: horizon(metadata, samples)?,
                residual: Residual::read(metadata, channels)?,
            }),
            Some("probability") => OutputKind::Probability(Classes::read(metadata)?),
            Some("regression") => OutputKind::Regression(Regression::read(metadata)?),
            Some(_) => {
                let kinds = "`score`, `reconstruction`, `forecast`, `probability` or `regression`";
                return Err(metadata.invalid(KEY_OUTPUT, kinds));
            }
        };
        if kind.residual().is_some() && *input != InputKind::Window {
            let rule = "a kind that is not compared with the window (`score`, `probability` or `regression`) where millwright.input is \
                        `features`";
            return Err(metadata.invalid(KEY_OUTPUT, rule));
        }
        Ok(kind)
    }

    /// The entries that [`OutputKind::read`] reads back.
    pub(super) fn write(&self, set: &mut impl FnMut(&str, String)) {
        set(KEY_OUTPUT, self.word().to_owned());
        match self {
            OutputKind::Score => {}
            OutputKind::Reconstruction(residual) => residual.write(set),
            OutputKind::Forecast(forecast) => {
                set(KEY_HORIZON, forecast.horizon.to_string());
                forecast.residual.write(set);
            }
            OutputKind::Probability(classes) => {
                set(KEY_CLASSES, json(&classes.names));
                set(KEY_NORMAL_CLASS, classes.normal_name().to_owned());
                set(KEY_THRESHOLD, classes.threshold.to_string());
            }
            OutputKind::Regression(regression) => {
                if let Some(unit) = &regression.unit {
                    set(KEY_UNIT, unit.clone());
                }
                set(KEY_HEALTHY, regression.healthy.to_string());
                match regression.alarm {
                    AlarmValue::Below(value) => set(KEY_ALARM_BELOW, value.to_string()),
                    AlarmValue::Above(value) => set(KEY_ALARM_ABOVE, value.to_string()),
                }
            }
        }
    }

    /// The kind as the metadata names it.
    pub fn word(&self) -> &'static str {
        match self {
            OutputKind::Score => "score",
            OutputKind::Reconstruction(_) => "reconstruction",
            OutputKind::Forecast(_) => "forecast",
            OutputKind::Probability(_) => "probability",
            OutputKind::Regression(_) => "regression",
        }
    }

    /// Scale and threshold, for the kinds that are compared with the window.
    pub fn residual(&self) -> Option<&Residual> {
        match self {
            OutputKind::Reconstruction(residual) => Some(residual),
            OutputKind::Forecast(forecast) => Some(&forecast.residual),
            _ => None,
        }
    }

    /// Rows at the window's end that the graph is not given.
    pub fn horizon(&self) -> usize {
        match self {
            OutputKind::Forecast(forecast) => forecast.horizon,
            _ => 0,
        }
    }
}

/// The kind in one line, for people: `regression in h, alarm below 24, healthy 1000`.
impl fmt::Display for OutputKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        match self {
            OutputKind::Score => Ok(()),
            OutputKind::Reconstruction(residual) => write!(f, ", alarm at {} standard deviations", residual.threshold),
            OutputKind::Forecast(Forecast { horizon, residual }) => {
                write!(f, " of {horizon} rows, alarm at {} standard deviations", residual.threshold)
            }
            OutputKind::Probability(classes) => {
                let names = classes.names.join(", ");
                let (normal, threshold) = (classes.normal_name(), classes.threshold);
                write!(f, " of {names}; `{normal}` is normal, alarm when the others reach {threshold}")
            }
            OutputKind::Regression(regression) => {
                if let Some(unit) = &regression.unit {
                    write!(f, " in {unit}")?;
                }
                match regression.alarm {
                    AlarmValue::Below(value) => write!(f, ", alarm below {value}")?,
                    AlarmValue::Above(value) => write!(f, ", alarm above {value}")?,
                }
                write!(f, ", healthy {}", regression.healthy)
            }
        }
    }
}

impl Residual {
    fn read(metadata: &Metadata<'_>, channels: usize) -> Result<Residual, ContractError> {
        let expected = "a JSON list with the residual's standard deviation of each channel";
        let text = metadata.required_text(KEY_SCALE, expected)?;
        let scale: Vec<f32> =
            serde_json::from_str(text).map_err(|e| metadata.invalid(KEY_SCALE, format_args!("{expected} ({e})")))?;
        if scale.len() != channels || !scale.iter().all(|v| v.is_finite() && *v > 0.0) {
            let rule = format_args!("{channels} positive numbers, one per channel");
            return Err(metadata.invalid(KEY_SCALE, rule));
        }
        let threshold = metadata.finite(KEY_THRESHOLD, "a positive number")?;
        if threshold <= 0.0 {
            return Err(metadata.invalid(KEY_THRESHOLD, "a positive number"));
        }
        Ok(Residual { scale, threshold })
    }

    fn write(&self, set: &mut impl FnMut(&str, String)) {
        set(KEY_SCALE, json(&self.scale));
        set(KEY_THRESHOLD, self.threshold.to_string());
    }
}

fn horizon(metadata: &Metadata<'_>, samples: usize) -> Result<usize, ContractError> {
    let horizon = match metadata.text(KEY_HORIZON) {
        None => 1,
        Some(_) => metadata.required::<usize>(KEY_HORIZON, "a number of rows")?,
    };
    if horizon == 0 || horizon >= samples {
        let rule = format_args!("at least 1 and less than the {samples} samples of the window");
        return Err(metadata.invalid(KEY_HORIZON, rule));
    }
    Ok(horizon)
}

impl Classes {
    fn read(metadata: &Metadata<'_>) -> Result<Classes, ContractError> {
        let expected = "a JSON list of class names, in the order of the graph's columns";
        let text = metadata.required_text(KEY_CLASSES, expected)?;
        let names: Vec<String> =
            serde_json::from_str(text).map_err(|e| metadata.invalid(KEY_CLASSES, format_args!("{expected} ({e})")))?;
        if !(2..=CLASSES_MAX).contains(&names.len()) {
            return Err(metadata.invalid(KEY_CLASSES, format_args!("2 to {CLASSES_MAX} classes, not {}", names.len())));
        }
        let mut seen = HashSet::new();
        for name in &names {
            check_label(name).map_err(|rule| metadata.invalid(KEY_CLASSES, format_args!("classes named by {rule}")))?;
            if !seen.insert(name) {
                let rule = format_args!("classes with different names, but `{}` is there twice", shorten(name));
                return Err(metadata.invalid(KEY_CLASSES, rule));
            }
        }
        let normal = metadata.required_text(KEY_NORMAL_CLASS, "which class is a healthy machine")?;
        let Some(normal) = names.iter().position(|name| name == normal) else {
            return Err(metadata.invalid(KEY_NORMAL_CLASS, "one of the classes in millwright.classes"));
        };
        let threshold = match metadata.text(KEY_THRESHOLD) {
            None => PROBABILITY_THRESHOLD,
            Some(_) => metadata.finite(KEY_THRESHOLD, "a probability")?,
        };
        if !(threshold > 0.0 && threshold <= 1.0) {
            return Err(metadata.invalid(KEY_THRESHOLD, "a probability above 0 and at most 1"));
        }
        Ok(Classes { names, normal, threshold })
    }

    /// The name of the class that is a healthy machine.
    pub fn normal_name(&self) -> &str {
        self.names.get(self.normal).map_or("", String::as_str)
    }
}

impl Regression {
    fn read(metadata: &Metadata<'_>) -> Result<Regression, ContractError> {
        let unit = metadata.text(KEY_UNIT).map(str::to_owned);
        if let Some(Err(rule)) = unit.as_deref().map(check_label) {
            return Err(metadata.invalid(KEY_UNIT, rule));
        }
        let healthy = metadata.finite(KEY_HEALTHY, "the value of a healthy machine, a number")?;
        let expected = "the value at which the alarm is raised, a number";
        let (key, alarm) = match (metadata.text(KEY_ALARM_BELOW), metadata.text(KEY_ALARM_ABOVE)) {
            (Some(_), Some(_)) => {
                return Err(metadata.invalid(KEY_ALARM_ABOVE, "left out where millwright.alarm_below is given"));
            }
            (None, Some(_)) => (KEY_ALARM_ABOVE, AlarmValue::Above(metadata.finite(KEY_ALARM_ABOVE, expected)?)),
            (Some(_), None) => (KEY_ALARM_BELOW, AlarmValue::Below(metadata.finite(KEY_ALARM_BELOW, expected)?)),
            (None, None) => {
                let expected =
                    "the value at which the alarm is raised; or `millwright.alarm_above`, when more is worse";
                return Err(ContractError::Missing { key: KEY_ALARM_BELOW, expected });
            }
        };
        match alarm {
            AlarmValue::Below(value) if value >= healthy => {
                Err(metadata.invalid(key, format_args!("less than millwright.healthy, {healthy}")))
            }
            AlarmValue::Above(value) if value <= healthy => {
                Err(metadata.invalid(key, format_args!("more than millwright.healthy, {healthy}")))
            }
            alarm => Ok(Regression { unit, healthy, alarm }),
        }
    }
}
