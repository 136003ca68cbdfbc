//! Cost against depth, as a picture.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use crate::measure::{DEEPEST, Measured, Series};

/// Colours that people with any colour vision tell apart (Okabe and Ito).
const COLOURS: [RGBColor; 5] = [
    RGBColor(120, 120, 120),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
];

pub fn draw(measured: &Measured, file: &Path) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(file, (900, 600)).into_drawing_area();
    root.fill(&WHITE)?;
    let highest = measured.series.iter().flat_map(|series| &series.cycles).map(|at| at.q3).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(&root)
        .caption("What a call costs, by the frames around it", ("sans-serif", 22))
        .margin(16)
        .margin_bottom(40)
        .x_label_area_size(56)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..DEEPEST as f64, 0.0..(highest * 1.05))?;
    chart
        .configure_mesh()
        .x_desc("call frames around the stub")
        .y_desc("TSC cycles per call, frames included")
        .x_labels(11)
        .y_labels(10)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .light_line_style(WHITE)
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 16))
        .draw()?;
    // The highest first, so that the legend is in the order of the curves.
    for (series, colour) in measured.series.iter().zip(COLOURS).rev() {
        let points = |of: fn(&crate::support::clock::Summary) -> f64| {
            series.cycles.iter().enumerate().map(move |(depth, at)| (depth as f64, of(at)))
        };
        let band: Vec<_> = points(|at| at.q1).chain(points(|at| at.q3).collect::<Vec<_>>().into_iter().rev()).collect();
        chart.draw_series([Polygon::new(band, colour.mix(0.25))])?;
        chart
            .draw_series(LineSeries::new(points(|at| at.median), colour.stroke_width(2)))?
            .label(label(series))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], colour.stroke_width(3)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleRight)
        .legend_area_size(32)
        .margin(12)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.4))
        .label_font(("sans-serif", 14))
        .draw()?;
    let marks = [
        (measured.level_at.map(|knee| knee.at), 0.96, "Rop levels off"),
        (measured.return_stack, 0.36, "return stack full"),
    ];
    for (frames, height, text) in marks {
        let Some(frames) = frames else { continue };
        let (grey, top) = (BLACK.mix(0.5), highest * height);
        chart.draw_series(DashedLineSeries::new([(frames, 0.0), (frames, top)], 4, 4, grey.stroke_width(1)))?;
        let font = ("sans-serif", 14).into_font().color(&grey);
        chart.draw_series([Text::new(format!("{text}: {frames:.0}"), (frames + 0.3, top), font)])?;
    }
    let machine = &measured.machine;
    let note = format!(
        "{}; TSC at {:.2} GHz, core at {:.2} GHz. Lines: medians; bands: quartiles.",
        machine.cpu,
        machine.ticks_per_ns,
        machine.ticks_per_ns / machine.clock.median,
    );
    root.draw(&Text::new(note, (80, 572), ("sans-serif", 12).into_font().color(&BLACK.mix(0.6))))?;
    root.present()?;
    Ok(())
}

fn label(series: &Series) -> &'static str {
    match series.name {
        "Rop" => "Rop: the return is hijacked",
        "CallRet" => "CallRet: 36 bytes and two helpers",
        "Compact" => "Compact: 13 bytes and two helpers",
        "Inline" => "Inline: no helpers",
        _ => "the frames alone, without a stub",
    }
}
