//! Where a line bends.

/// The first x from which on `points` stay more than `share` above the line through those up to `straight`.
pub fn departure(points: &[(f64, f64)], straight: f64, share: f64) -> Option<f64> {
    let base = || points.iter().filter(|(x, _)| *x <= straight);
    let count = base().count() as f64;
    let (mean_x, mean_y) = (base().map(|p| p.0).sum::<f64>() / count, base().map(|p| p.1).sum::<f64>() / count);
    let covariance: f64 = base().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let slope = covariance / base().map(|(x, _)| (x - mean_x).powi(2)).sum::<f64>();
    let above = |&(x, y): &(f64, f64)| y > (mean_y + slope * (x - mean_x)) * (1.0 + share);
    let last_below = points.iter().rposition(|point| !above(point))?;
    points.get(last_below + 1).map(|point| point.0)
}

/// Two straight lines that meet.
#[derive(Clone, Copy, Debug)]
pub struct Knee {
    /// Where they meet.
    pub at: f64,
    /// Slope before.
    pub before: f64,
    /// Slope behind.
    pub behind: f64,
}

impl Knee {
    /// The continuous pair of lines with the least squared error, of all that meet at a quarter of a step and leave three
    /// points on either side. `points` are evenly spaced.
    pub fn fit(points: &[(f64, f64)]) -> Option<Knee> {
        let (first, last) = (points.first()?.0, points.last()?.0);
        let candidates = (0..).map(|quarter| first + 2.0 + f64::from(quarter) / 4.0).take_while(|at| *at <= last - 2.0);
        candidates
            .filter_map(|at| Self::meeting_at(at, points))
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .map(|(knee, _)| knee)
    }

    /// The best pair that meets at `at`, by the normal equations of y = c + before·min(x, at) + behind·max(x − at, 0); and
    /// its squared error.
    fn meeting_at(at: f64, points: &[(f64, f64)]) -> Option<(Knee, f64)> {
        let terms = |x: f64| [1.0, x.min(at), (x - at).max(0.0)];
        let mut system = [[0.0; 4]; 3];
        for &(x, y) in points {
            let terms = terms(x);
            for (row, a) in system.iter_mut().zip(terms) {
                for (cell, b) in row.iter_mut().zip([terms[0], terms[1], terms[2], y]) {
                    *cell += a * b;
                }
            }
        }
        let [c, before, behind] = solve(system)?;
        let error = points.iter().map(|&(x, y)| {
            let [t0, t1, t2] = terms(x);
            (c * t0 + before * t1 + behind * t2 - y).powi(2)
        });
        Some((Knee { at, before, behind }, error.sum()))
    }
}

/// Gauss and Jordan, with pivoting. `None` if there is not one solution.
fn solve(mut system: [[f64; 4]; 3]) -> Option<[f64; 3]> {
    for column in 0..3 {
        let pivot = (column..3).max_by(|a, b| system[*a][column].abs().total_cmp(&system[*b][column].abs()))?;
        system.swap(column, pivot);
        let divisor = system[column][column];
        if divisor.abs() < 1e-9 {
            return None;
        }
        let row = system[column].map(|cell| cell / divisor);
        for (index, other) in system.iter_mut().enumerate() {
            let factor = other[column];
            *other = match index == column {
                true => row,
                false => core::array::from_fn(|i| other[i] - factor * row[i]),
            };
        }
    }
    Some(system.map(|row| row[3]))
}
